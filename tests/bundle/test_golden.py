"""The file of golden cases."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_modules import tiny_reference

from vaedeploy.bundle.golden import GoldenCase, decode_golden, encode_golden
from vaedeploy.errors import BundleError
from vaedeploy.images.photos import Photo, load_photos
from vaedeploy.values.reference import Reference
from vaedeploy.verify.reference import compute_golden
from vaedeploy.verify.shapes import Shape

SHAPES = (Shape("odd", 2, 20, 12, True), Shape("square", 1, 16, 16, False))
SCALE, SHIFT = (0.3, 2.0, -1.5, 0.01), (0.5, 0.0, -3.0, 10.0)


@pytest.fixture(scope="module")
def photos() -> list[Photo]:
    return load_photos()


@pytest.fixture(scope="module")
def reference() -> Reference:
    return tiny_reference(scale=SCALE, shift=SHIFT)


@pytest.fixture(scope="module")
def cases(reference: Reference, photos: list[Photo]) -> tuple[GoldenCase, ...]:
    return compute_golden(reference, photos, SHAPES)


def test_the_file_keeps_everything(cases: tuple[GoldenCase, ...]) -> None:
    read = decode_golden(encode_golden(cases, "abc"), "abc")
    assert [c.name for c in read] == [c.name for c in cases]
    for found, expected in zip(read, cases, strict=True):
        assert found.round_trip is expected.round_trip
        assert list(found.latents) == list(expected.latents)
        for name in expected.latents:
            np.testing.assert_array_equal(found.latents[name], expected.latents[name])
        np.testing.assert_array_equal(found.image, expected.image)
        np.testing.assert_array_equal(found.photo, expected.photo)


def test_another_vaes_file_is_refused(cases: tuple[GoldenCase, ...]) -> None:
    with pytest.raises(BundleError, match=r"^golden\.safetensors is of another VAE: abc, not xyz$"):
        decode_golden(encode_golden(cases, "abc"), "xyz")


@pytest.mark.parametrize(
    "damage", [lambda d: d[:1000], lambda d: b"", lambda d: d[:8] + b"x" + d[9:]], ids=["cut", "empty", "altered"]
)
def test_a_damaged_file_is_refused(cases: tuple[GoldenCase, ...], damage) -> None:
    with pytest.raises(BundleError, match=r"^golden\.safetensors cannot be read: .*vaedeploy verify BUNDLE"):
        decode_golden(damage(encode_golden(cases, "abc")), "abc")

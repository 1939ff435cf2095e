"""The file of golden cases."""

from __future__ import annotations

import numpy as np
import pytest
from golden_cases import golden_cases

from vaedeploy.bundle.golden import GoldenCase, decode_golden, encode_golden
from vaedeploy.errors import BundleError


@pytest.fixture(scope="module")
def cases() -> tuple[GoldenCase, ...]:
    return golden_cases()


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

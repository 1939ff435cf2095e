"""``assert_parity``: what it takes, what it finds, and what it says."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_bundle import tiny_bundle
from tiny_inputs import photo

import vaedeploy as vd
from vaedeploy.bundle import Bundle
from vaedeploy.errors import ImageError, InputError, SizeError
from vaedeploy.images.photos import crop_batch, load_photos
from vaedeploy.runtime import VAE
from vaedeploy.testing import assert_parity
from vaedeploy.values.reference import Reference


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    return [crop_batch(load_photos(), 1, *size)[0] for size in ((64, 96), (48, 48))]


@pytest.fixture
def two(tmp_path: Path) -> tuple[Bundle, Bundle]:
    """Two bundles with the same decoder, whose encoders differ by 0.1 %."""
    return tiny_bundle(tmp_path / "one"), tiny_bundle(tmp_path / "other", gain=1.001)


def test_a_bundle_is_what_it_was_made_from(
    tiny_vae: Reference, tiny_vae_bundle: Bundle, photos: list[np.ndarray], tmp_path: Path
) -> None:
    Image.fromarray(photos[0]).save(tmp_path / "photo.png")
    images = [*photos, Image.fromarray(photos[0]), tmp_path / "photo.png"]
    before = (tiny_vae_bundle.path / "bundle.json").read_bytes()
    report = assert_parity(tiny_vae_bundle, tiny_vae, images)
    assert report.passed
    assert (report.precision, report.reference) == ("fp32", "tiny (modules) in float64")
    assert {case.name for case in report.cases} == {"image 0", "image 1", "image 2", "image 3 (photo.png)"}
    assert [(c.part, c.output) for c in report.cases if c.name == "image 1"] == [
        ("encoder", "latent_mean"),
        ("encoder", "latent_std"),
        ("decoder", "image"),
        ("round trip", "image"),
    ]
    assert (tiny_vae_bundle.path / "bundle.json").read_bytes() == before


def test_an_open_vae_stays_open(two: tuple[Bundle, Bundle]) -> None:
    with VAE(two[0].path) as vae:
        assert_parity(vae, two[0].path, [photo(8, 8)])
        assert_parity(str(two[0].path), vae, [photo(8, 8)])
        vae.encode(photo(8, 8))


def test_a_difference_is_told(two: tuple[Bundle, Bundle]) -> None:
    with pytest.raises(AssertionError) as caught:
        assert_parity(two[0], two[1], [photo(8, 12), photo(8, 8)])
    first, *cases = str(caught.value).splitlines()
    one, other = (f"bundle {bundle.path} (onnxruntime-cpu)" for bundle in two)
    assert first.startswith(f"{one} differs from {other} in ")
    assert first.endswith(" of 8 cases:")
    assert "  image 0, 1x8x12, encoder latent_mean: relative error is 0.000999; it must be at most 2e-05" in cases, (
        cases
    )
    assert not [line for line in cases if "decoder image" in line]


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({"rtol": 1e-2, "levels": 3}, True),
        ({"precision": "fp16"}, True),
        ({"precision": "fp16", "rtol": 1e-6}, False),
        ({"rtol": 1e-4}, False),
    ],
)
def test_limits_may_be_given(two: tuple[Bundle, Bundle], options: dict[str, Any], passes: bool) -> None:
    if passes:
        assert assert_parity(*two, [photo(8, 8)], **options).passed
        return
    with pytest.raises(AssertionError, match="it must be at most " + f"{options['rtol']:.3g}"):
        assert_parity(*two, [photo(8, 8)], **options)


def test_levels_are_a_limit_of_their_own(tmp_path: Path) -> None:
    bundles = tiny_bundle(tmp_path / "one"), tiny_bundle(tmp_path / "other", onnxruntime_form=True)
    with pytest.raises(
        AssertionError, match=r"; largest difference is 211 of 255 levels; it must be at most 2 of 255 levels"
    ):
        assert_parity(*bundles, [photo(8, 8)], precision="fp16", rtol=10, levels=2)


def test_a_vae_without_a_distribution(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "tiny", sampled=False)
    assert {case.output for case in assert_parity(bundle, bundle, [photo(8, 8)]).cases} == {"latent", "image"}


def test_a_wrong_reference_fails(tiny_vae: Reference, tiny_vae_bundle: Bundle, photos: list[np.ndarray]) -> None:
    from vaedeploy.testing.tiny import tiny_reference

    other = dataclasses.replace(tiny_reference(seed=1), latent=tiny_vae.latent)
    with pytest.raises(AssertionError, match="8 of 8 cases"):
        assert_parity(tiny_vae_bundle, other, photos)


@pytest.mark.slow
def test_a_vae_of_diffusers(demo_bundle: Bundle, photos: list[np.ndarray]) -> None:
    small = [photos[0][:32, :32]]
    import msgspec
    import torch
    from diffusers import AutoencoderKL
    from safetensors.torch import load_file

    preset = vd.get_preset("demo")
    assert preset.packaged_file
    original = AutoencoderKL(
        **msgspec.structs.asdict(preset.config), scaling_factor=preset.latent.scale, shift_factor=preset.latent.shift
    )
    original.load_state_dict(load_file(preset.packaged_file))
    assert_parity(demo_bundle, original, small)
    with torch.no_grad():
        original.decoder.conv_out.weight *= 1.001
    with pytest.raises(AssertionError, match="decoder image: relative error is "):
        assert_parity(demo_bundle, original, small)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ([], InputError, "there is no image to compare on; give at least one"),
        ([np.zeros((8, 8))], ImageError, "image 0 is float64 of shape (8, 8); it must be (H, W, 3) uint8, a Pillow"),
        ([photo(8, 8), 3], ImageError, "image 1 is int; it must be (H, W, 3) uint8, a Pillow image or a path"),
        ([photo(8, 9)], SizeError, "image is 8x9 (height x width), but both must be multiples of 4; "),
    ],
)  # fmt: skip
def test_images_that_cannot_be_compared(
    two: tuple[Bundle, Bundle], images: list[Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        assert_parity(*two, images)
    assert str(caught.value).startswith(message)


def test_what_cannot_be_compared(two: tuple[Bundle, Bundle], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^actual is of type int; it must be a path, a Bundle or a VAE$"):
        assert_parity(3, two[0], [photo(8, 8)])  # type: ignore[arg-type]
    with pytest.raises(
        InputError, match=r"^reference is of type int; it must be a Reference, a VAE of diffusers, or a "
    ):
        assert_parity(two[0], 3, [photo(8, 8)])  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"^precision is 'fp8'; it must be one of fp32, fp16, bf16$"):
        assert_parity(two[0], two[0], [photo(8, 8)], precision="fp8")  # type: ignore[arg-type]
    more = tiny_bundle(tmp_path / "more", channels=3)
    with pytest.raises(
        InputError, match=r"has another latent contract than bundle .*: channels is 2, and 3 there\. Lat"
    ):
        assert_parity(two[0], more, [photo(8, 8)])


# In pytest of users

TESTS = """
import sys
HEAVY = {"numpy", "onnxruntime", "torch", "msgspec"} & set(sys.modules)

def test_nothing_heavy_is_imported_at_collection():
    assert not HEAVY

def test_decodes(vae, request):
    assert vae.path.name == request.node.callspec.id.rsplit("/")[-1].rsplit("\\\\")[-1]
    assert vae.decode(__import__("numpy").zeros((1, 2, 2, 2))).shape == (1, 8, 8, 3)
"""


def run_pytest(folder: Path, *arguments: object) -> str:
    (folder / "test_users.py").write_text(TESTS)
    # The plugin is named, since vaedeploy may be here without being installed.
    plugin = ("-p", "no:vaedeploy", "-p", "vaedeploy.testing.plugin", "-p", "no:cacheprovider")
    command = [sys.executable, "-B", "-m", "pytest", "-q", "-rs", *plugin, *map(str, arguments), "test_users.py"]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder).stdout


def test_the_fixture_opens_every_bundle_that_is_named(two: tuple[Bundle, Bundle], tmp_path: Path) -> None:
    told = run_pytest(tmp_path, *(f"--vae-bundle={bundle.path}" for bundle in two))
    assert "3 passed" in told, told


def test_bundles_may_be_named_in_the_settings(two: tuple[Bundle, Bundle], tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\nvae_bundle = one\n")
    told = run_pytest(tmp_path)
    assert "2 passed" in told, told


def test_the_fixture_skips_where_no_bundle_is_named(tmp_path: Path) -> None:
    told = run_pytest(tmp_path)
    assert "1 passed, 1 skipped" in told, told
    assert "no bundle is named: pytest --vae-bundle PATH, or vae_bundle = PATH in pytest's settings" in told


def test_a_bundle_that_is_not_there_is_told_in_a_sentence(tmp_path: Path) -> None:
    told = run_pytest(tmp_path, "--vae-bundle=nowhere")
    assert "there is no bundle at nowhere" in told, told
    assert "plugin.py" not in told

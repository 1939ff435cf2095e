"""Patches of other tone: found at graded strength and in real blended tiles, and not in what is the same all over."""

from __future__ import annotations

import io

import diffusers
import faults
import numpy as np
import pytest
import torch
from blended import decode_in_tiles
from photographs import kodak, needs_kodak, words
from PIL import Image

from vaedeploy.bundle import Bundle
from vaedeploy.images.photos import load_photos
from vaedeploy.images.pixels import to_levels
from vaedeploy.quality import measure_quality
from vaedeploy.quality.planes import make_planes
from vaedeploy.quality.tone import Tone, measure_tone
from vaedeploy.runtime import VAE

Picture = faults.Picture

PATCHES = "patches of other tone"

STRENGTHS = (0.25, 0.5, 1, 2, 3, 5)


@pytest.fixture(scope="module")
def photos() -> list[Picture]:
    """scikit-image's photographs, (H, W, 3), each side 256 to 512."""
    return [np.ascontiguousarray(photo[:512, :512]) for photo in load_photos()]


def tone(reference: Picture, candidate: Picture) -> Tone:
    return measure_tone(make_planes(reference), make_planes(candidate))


def test_patches_rank_by_their_strength(photos: list[Picture]) -> None:
    for photo in photos:
        spreads = [tone(photo, faults.patches(photo, levels)).spread for levels in STRENGTHS]
        assert spreads == sorted(set(spreads))
        for levels, spread in zip(STRENGTHS, spreads, strict=True):
            assert 0.75 * levels < spread < 1.3 * levels  # the common change takes some of it, or adds some


@pytest.mark.parametrize("levels", [3, 5])
def test_strong_patches_are_told(photos: list[Picture], levels: float) -> None:
    for photo in photos:
        quality = measure_quality(photo, faults.patches(photo, levels))
        assert PATCHES in words(quality)
        assert "seams" not in words(measure_quality(photo, faults.patches(photo, levels), tile=faults.TILE))


@pytest.mark.parametrize("levels", [0.25, 0.5])
def test_parts_of_a_level_are_not_told(photos: list[Picture], levels: float) -> None:
    for photo in photos:
        assert PATCHES not in words(measure_quality(photo, faults.patches(photo, levels)))


def jpeg(picture: Picture, quality: int) -> Picture:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def gamma(picture: Picture, power: float) -> Picture:
    return np.rint(255 * (picture / 255) ** power).astype(np.uint8)


@pytest.mark.parametrize(
    "change",
    [
        faults.rounding_noise,
        lambda picture: faults.wash_out(picture, 0.4),
        lambda picture: faults.fade(picture, 0.4),
        lambda picture: faults.cast(picture, 8),
        lambda picture: faults.GREEN(picture, 8),
        lambda picture: gamma(picture, 0.95),
        lambda picture: faults.blur(picture, 2),
        lambda picture: faults.fry(picture, 1000),
        lambda picture: faults.grid(picture, 8),
        lambda picture: jpeg(picture, 90),
        lambda picture: jpeg(picture, 50),
    ],
    ids=[
        "noise",
        "mixed with grey",
        "faded",
        "lighter",
        "green",
        "gamma",
        "blur",
        "specks",
        "grid",
        "JPEG 90",
        "JPEG 50",
    ],
)
def test_what_is_the_same_all_over_is_no_patch(photos: list[Picture], change: object) -> None:
    for photo in photos:
        assert PATCHES not in words(measure_quality(photo, change(photo)))  # type: ignore[operator]


@pytest.mark.parametrize("size", [(32, 32), (40, 200), (64, 64), (96, 64), (130, 130)])
def test_small_pictures_have_few_places(photos: list[Picture], size: tuple[int, int]) -> None:
    small = np.ascontiguousarray(photos[0][: size[0], : size[1]])
    for changed in (small, faults.rounding_noise(small), faults.cast(small, 8), jpeg(small, 75)):
        assert PATCHES not in words(measure_quality(small, changed))
    if max(size) <= 64:
        assert tone(small, faults.blur(small, 3)).spread == 0


def test_black_and_white_pictures_have_no_tone_to_compare() -> None:
    for level in (0, 255):
        flat = np.full((256, 256, 3), level, np.uint8)
        assert tone(flat, flat) == Tone(0, 0)
        assert tone(flat, np.full_like(flat, 128)) == Tone(0, 0)


def test_blended_tiles_are_those_of_diffusers() -> None:
    vae = diffusers.AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1).eval()
    vae.use_tiling = True
    vae.tile_latent_min_size, vae.tile_sample_min_size = 16, 32
    latent = torch.randn(1, 4, 37, 20, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = vae.tiled_decode(latent).sample.numpy()

        def decode(tile: np.ndarray) -> np.ndarray:
            made: np.ndarray = vae.decoder(vae.post_quant_conv(torch.from_numpy(tile))).numpy()
            return made

        found = decode_in_tiles(decode, latent.numpy(), tile=16, factor=2)
    # float32; the two weight the tiles in another order.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def check_blended(bundle: Bundle, photo: Picture, tile: int) -> None:
    with VAE(bundle.path) as vae:
        latent = vae.encode(photo[None])
        whole = vae.decode(latent)[0]
        image = decode_in_tiles(lambda part: vae.decode(part, output="float"), latent, tile)
    assert PATCHES in words(measure_quality(whole, to_levels(image)[0]))
    assert PATCHES not in words(measure_quality(photo, whole))


@pytest.mark.slow
def test_blended_tiles_of_the_demo_vae(demo_bundle: Bundle) -> None:
    check_blended(demo_bundle, load_photos()[0], tile=16)


@needs_kodak
@pytest.mark.slow
def test_blended_tiles_of_a_kodak_photograph(demo_bundle: Bundle) -> None:
    check_blended(demo_bundle, *kodak(15), tile=24)

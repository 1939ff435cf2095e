"""Pieces are run from the bytes that were hashed when the VAE was opened, or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from bit_flips import flip

from vaedeploy.bundle import Bundle
from vaedeploy.errors import BundleError
from vaedeploy.runtime import VAE
from vaedeploy.runtime.rows.half import RowsHalf

LATENT = np.random.default_rng(0).standard_normal((1, 4, 40, 30)).astype(np.float32)


@pytest.fixture
def folder(tiny_vae_bundle: Bundle, tmp_path: Path) -> Path:
    """A copy of a bundle, which a test may damage."""
    return Path(shutil.copytree(tiny_vae_bundle.path, tmp_path / "tiny"))


def by_rows(path: Path) -> VAE:
    with VAE(path, "onnxruntime-cpu") as vae:
        least = vae.plan(160, 120)["decoder"].least
    return VAE(path, "onnxruntime-cpu", max_memory=least)


def test_the_table_changes_after_the_vae_was_opened(folder: Path) -> None:
    with by_rows(folder) as vae:
        flip(folder / "decoder.rows.json", 8000)
        with pytest.raises(BundleError, match=r"decoder\.rows\.json is altered: its sha256 is "):
            vae.decode(LATENT)


def test_weights_change_after_the_vae_was_used(folder: Path) -> None:
    weights = [weight for piece in RowsHalf(Bundle.open(folder), "decoder").table.pieces for weight in piece.weights]
    assert len({weight.file for weight in weights}) > 1
    for file in {weight.file for weight in weights}:
        weight = next(weight for weight in weights if weight.file == file)
        with by_rows(folder) as vae:
            vae.decode(LATENT)
            flip(folder / file, 8 * weight.offset)
            with pytest.raises(BundleError, match=rf"{file} is altered: {weight.bytes:,} bytes at {weight.offset:,} "):
                vae.decode(LATENT)
            flip(folder / file, 8 * weight.offset)


def test_another_bundle_takes_its_place(folder: Path) -> None:
    with by_rows(folder) as vae:
        wanted = vae.decode(LATENT, output="float")
    with by_rows(folder) as vae:
        for file in folder.iterdir():
            file.rename(folder / f"{file.name}.old")
            file.write_bytes(b"another")
        assert np.array_equal(vae.decode(LATENT, output="float"), wanted)

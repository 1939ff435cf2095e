"""Profiles, and the names of what is built from them, as several tests have them."""

from __future__ import annotations

from pathlib import Path

from vaedeploy.bundle import Bundle
from vaedeploy.system.gpu import Gpu

GOOD_PROFILE = {
    "gpu": '"A GPU"',
    "compute_capability": '"8.9"',
    "memory_gib": "24",
    "backend": '"tensorrt-rtx"',
    "precision": '"fp16"',
    "shapes": "{ small = { height = 64, width = 64 } }",
}

ENCODER = "engines/mine/encoder.tensorrt-rtx.engine"
DECODER = "engines/mine/decoder.tensorrt-rtx.engine"
SIZES = "{ small = { height = 8, width = 8 }, any = { batch = [1, 1, 2], height = [4, 8, 16], width = [4, 8, 16] } }"
RTX4090 = Gpu("NVIDIA GeForce RTX 4090", "8.9", 24.0)


def write_profile(folder: Path, stem: str = "mine", /, **changes: str | None) -> Path:
    """A good profile but for ``changes``; None leaves a field out."""
    fields = {key: value for key, value in {**GOOD_PROFILE, **changes}.items() if value is not None}
    path = folder / f"{stem}.toml"
    path.write_text("".join(f"{key} = {value}\n" for key, value in fields.items()))
    return path


def snapshot(bundle: Bundle) -> dict[str, bytes]:
    """Every file of a bundle by its path in it."""
    return {str(p.relative_to(bundle.path)): p.read_bytes() for p in bundle.path.rglob("*") if p.is_file()}

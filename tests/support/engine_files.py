"""Profiles, and the names of what is built from them, as several tests have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from vaedeploy.bundle import Bundle
from vaedeploy.bundle.engines import engine_name
from vaedeploy.bundle.manifest import EngineIdentity, EngineInfo, FileInfo
from vaedeploy.system.gpu import Gpu
from vaedeploy.system.hashing import file_sha256
from vaedeploy.values.kinds import Backend
from vaedeploy.values.shapes import ShapeSet

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


def claim_engine(bundle: Bundle, backend: Backend = "tensorrt-rtx") -> dict[str, Any]:
    """Write a file that carries an engine's mark and is none, and return the manifest that names it, as plain JSON."""
    name = engine_name("mine", "encoder", backend)
    identity = EngineIdentity(
        graph="0" * 64,
        rewritten="1" * 64,
        precision="fp32",
        backend=backend,
        backend_version="1.7.1.116",
        compute_capability="8.9",
        gpu=None,
        shapes={"small": ShapeSet(height=8, width=8), "any": ShapeSet(batch=(1, 1, 2), height=(4, 8, 16), width=8)},
        options={"tf32": False},
    )
    info = EngineInfo(
        profile="mine",
        part="encoder",
        identity=identity,
        activation_bytes={"small": 10, "any": 20},
        weights_bytes=30,
        tensors={"image": "float32 (-1, 3, -1, -1)"},
        layers={"convolution float32": 1},
    )
    path = bundle.path / name
    path.parent.mkdir(parents=True)
    path.write_bytes(identity.mark)
    told: dict[str, Any] = msgspec.to_builtins(bundle.manifest)
    told["files"][name] = msgspec.to_builtins(FileInfo(file_sha256(path), path.stat().st_size))
    told["engines"] = {name: msgspec.to_builtins(info)}
    return told

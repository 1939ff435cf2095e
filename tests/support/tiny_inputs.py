"""What tests of the runtime feed to the tiny bundle, and how they open it again or in a process of its own."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import msgspec
import numpy as np

from vaedeploy.bundle import Bundle
from vaedeploy.bundle.encoding import encode_manifest
from vaedeploy.bundle.manifest import FileInfo
from vaedeploy.runtime import VAE

FACTOR, CHANNELS = 4, 2


def photo(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.5, shape).astype(np.float32)


def reopened(bundle: Bundle) -> VAE:
    """The bundle, after its manifest was made to agree with what its files are now."""
    files = {}
    for name in bundle.manifest.files:
        data = (bundle.path / name).read_bytes()
        files[name] = FileInfo(hashlib.sha256(data).hexdigest(), len(data))
    (bundle.path / "bundle.json").write_bytes(encode_manifest(msgspec.structs.replace(bundle.manifest, files=files)))
    return VAE(bundle.path)


def run_python(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-B", "-c", script], capture_output=True, text=True, check=False)


def photo_float(photo: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray((photo / np.float32(127.5) - 1).astype(np.float32).transpose(0, 3, 1, 2))

"""Safetensors files: what safetensors itself reads from them, and the same bytes from every process."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from vaedeploy.system.tensors import safetensors_bytes

ARRAYS = {
    "b": np.arange(6, dtype=np.uint8).reshape(2, 3),
    "a": np.arange(12, dtype=np.float32).reshape(3, 4).T,
    "c": np.array([0.5, np.inf], np.float64),
}
METADATA = {"vae": 'größer ✓ "', "cases": "[1, 2]", "identity": "12ab", "size": "[3,4]"}


def test_safetensors_reads_what_was_written(tmp_path: Path) -> None:
    data = safetensors_bytes(ARRAYS, METADATA)
    loaded = safetensors.numpy.load(data)
    assert set(loaded) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert loaded[name].dtype == array.dtype
        np.testing.assert_array_equal(loaded[name], array)
    (tmp_path / "a.safetensors").write_bytes(data)
    with safetensors.safe_open(tmp_path / "a.safetensors", framework="numpy") as file:
        assert file.metadata() == METADATA
    assert int.from_bytes(data[:8], "little") % 8 == 0


@pytest.mark.parametrize("metadata", [{}, {"a": ""}])
def test_little_metadata(metadata: dict[str, str]) -> None:
    np.testing.assert_array_equal(safetensors.numpy.load(safetensors_bytes(ARRAYS, metadata))["a"], ARRAYS["a"])


LATENT = """
import sys
import numpy as np
from pathlib import Path
from vaedeploy.images.latents import LatentFile
from vaedeploy.images.latents import write_latent
from vaedeploy.bundle.golden import GoldenCase
from vaedeploy.bundle.golden import encode_golden
from vaedeploy.values.latent import LatentSpec

path = Path(sys.argv[1])
write_latent(path, LatentFile(np.ones((1, 4, 2, 3), np.float32), "12ab", "demo", LatentSpec(4, 8, 0.5), (16, 24)))
sides = np.zeros((1, 4, 4, 3), np.uint8), np.zeros((1, 3, 4, 4), np.float32)
case = GoldenCase("odd", sides[0], {"latent": sides[1], "latent_std": sides[1]}, sides[1], True)
path.with_suffix(".golden").write_bytes(encode_golden([case], "12ab"))
"""


def test_every_process_writes_the_same_bytes(tmp_path: Path) -> None:
    found = set()
    for seed in range(4):  # safetensors itself would write the latent's four entries in one of 24 orders
        path = tmp_path / f"{seed}.safetensors"
        environment = os.environ | {"PYTHONHASHSEED": str(seed)}
        subprocess.run([sys.executable, "-c", LATENT, str(path)], check=True, env=environment)
        files = (path, path.with_suffix(".golden"))
        found.add(tuple(hashlib.sha256(file.read_bytes()).hexdigest() for file in files))
    assert len(found) == 1

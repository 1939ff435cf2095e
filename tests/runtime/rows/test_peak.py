"""The memory that a call takes, in a process of its own, is within its plan."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vaedeploy.bundle import Bundle

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux says how much was in use")

CHILD = """
import json, sys, warnings
import numpy as np
import vaedeploy as vd

def kilobytes(what):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(what))

warnings.simplefilter("ignore")
bundle, part, size, share = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
probe = vd.VAE(bundle, "onnxruntime-cpu", max_memory=2**20).plan(size, size)[part]
vae = vd.VAE(bundle, "onnxruntime-cpu", max_memory=int(probe.least * share), threads=2)
random, latent = np.random.default_rng(0), vae.latent
def give(pixels):
    side = pixels // latent.factor
    if part == "decoder":
        return random.standard_normal((1, latent.channels, side, side)).astype(np.float32)
    return random.integers(0, 256, (pixels, pixels, 3), np.uint8)
run = (lambda given: vae.decode(given, output="float")) if part == "decoder" else vae.encode
run(give(2 * latent.factor))  # loads the graph
plan, given = vae.plan(size, size)[part], give(size)
open("/proc/self/clear_refs", "w").write("5")
before = kilobytes("VmRSS")
result = run(given)
taken = (kilobytes("VmHWM") - before) * 1024 - result.nbytes
print(json.dumps({"taken": taken, "plan": plan.bytes, "way": plan.way}))
"""


def peak(bundle: Bundle, part: str, size: int, share: float) -> dict[str, int]:
    """What a call took and what was planned. share: the limit, as a multiple of the least."""
    command = [sys.executable, "-c", CHILD, str(bundle.path), part, str(size), str(share)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=3000)
    found: dict[str, int] = json.loads(result.stdout.splitlines()[-1])
    return found


def test_the_floats_of_an_image_count(tiny_vae_bundle: Bundle) -> None:
    """They are most of what an encoder of a few channels takes."""
    found = peak(tiny_vae_bundle, "encoder", 2048, 1.0)
    assert found["way"] == "rows"
    assert 0 < found["taken"] <= found["plan"]


@pytest.mark.slow
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_the_demo_vae(demo_bundle: Bundle, part: str) -> None:
    found = peak(demo_bundle, part, 512, 1.2)
    assert found["way"] == "rows"
    assert 0 < found["taken"] <= found["plan"]


@pytest.mark.full
@pytest.mark.parametrize("share", [1.0, 1.7])
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_full_size(full_size_bundle: Bundle, part: str, share: float) -> None:
    found = peak(full_size_bundle, part, 1024, share)
    assert found["way"] == "rows"
    assert 0.8 * found["plan"] <= found["taken"] <= found["plan"]

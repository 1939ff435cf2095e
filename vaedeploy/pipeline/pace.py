"""How fast a backend is beside ONNX Runtime on the same CPU, which decides the order of backends."""

from __future__ import annotations

import statistics

import numpy as np

from vaedeploy.bundle import Bundle
from vaedeploy.pipeline.turns import take_turns
from vaedeploy.runtime import onnxruntime_cpu
from vaedeploy.runtime.backends import find_candidates
from vaedeploy.runtime.candidate import Candidate, Settings
from vaedeploy.values.trials import trial_latents

ROUNDS = 5

LATENTS = 32
"""The side of the latent that is decoded; at factor 8, an image of 256x256."""


def measure_pace(bundle: Bundle, candidate: Candidate) -> float | None:
    """The ratio of a candidate's decode time to that of ONNX Runtime on the CPU: the median of ``ROUNDS`` rounds in
    which they take turns. None where one of them cannot compute it here.
    """
    if onnxruntime_cpu.problem():
        return None
    spec, side = bundle.manifest.latent, trial_latents(LATENTS, bundle.manifest.latent.factor)
    latent = np.random.default_rng(0).standard_normal((1, spec.channels, side, side), np.float32)
    plain = find_candidates(bundle, Settings(backend=onnxruntime_cpu.NAME))[0]
    halves = {one.backend: one.open("decoder") for one in (candidate, plain)}
    calls = {name: lambda half=half: half.run(["image"], {"latent": latent}) for name, half in halves.items()}
    (taken, _), (beside, _) = take_turns(calls, ROUNDS).values()
    return statistics.median(a / b for a, b in zip(taken, beside, strict=True)) if taken and beside else None

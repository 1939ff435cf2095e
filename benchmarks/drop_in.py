"""Measure what ``BundleVAE`` adds to the runtime: ``decode`` and ``encode`` of tensors and of arrays take turns.

    python benchmarks/drop_in.py BUNDLE [--sides 64 512] [--rounds 20] [--json FILE]

One image on the CPU. The figures are milliseconds, and the differences and ratios turn by turn: the median, with the
first and the third quartile.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vaedeploy.adapters.diffusers import BundleVAE
from vaedeploy.pipeline.turns import take_turns
from vaedeploy.runtime import VAE


def measure(vae: VAE, side: int, rounds: int) -> dict[str, Any]:
    adapter, random, spec = BundleVAE(vae), np.random.default_rng(0), vae.latent
    latent = random.standard_normal((1, spec.channels, side // spec.factor, side // spec.factor)).astype(np.float32)
    image = random.uniform(-1, 1, (1, spec.image_channels, side, side)).astype(np.float32)
    raw, pixels = torch.from_numpy(latent), torch.from_numpy(image)
    kinds = {
        "decode": {"runtime": lambda: vae.decode(latent, output="float"), "drop-in": lambda: adapter.decode(raw)},
        "encode": {"runtime": lambda: vae.encode_moments(image), "drop-in": lambda: adapter.encode(pixels)},
    }
    found = {}
    for kind, calls in kinds.items():  # not all four in turns: a decode that follows an encode takes longer
        times = {name: seconds for name, (seconds, _) in take_turns(calls, rounds).items()}
        pairs = list(zip(times["runtime"], times["drop-in"], strict=True))
        found[kind] = {
            "runtime ms": 1000 * statistics.median(own for own, _ in pairs),
            "added ms": quartiles([1000 * (other - own) for own, other in pairs]),
            "drop-in over runtime": quartiles([other / own for own, other in pairs]),
        }
    return found


def quartiles(values: list[float]) -> dict[str, float]:
    return dict(zip(("first quartile", "median", "third quartile"), statistics.quantiles(values, n=4), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--sides", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with VAE(options.bundle) as vae, torch.inference_mode():
        found = {f"{side}x{side}": measure(vae, side, options.rounds) for side in options.sides}
    print(json.dumps(found, indent=1))
    if options.json:
        told = json.loads(options.json.read_text()) if options.json.exists() else {}
        options.json.write_text(json.dumps(told | {vae.manifest.vae.name: found}, indent=1) + "\n")


if __name__ == "__main__":
    main()

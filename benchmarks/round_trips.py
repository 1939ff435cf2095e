"""Where the error of a round trip comes from: on a bundle's golden cases, relative L2 against float64.

    python benchmarks/round_trips.py VAE --bundle DIR

VAE: a preset, with seeded weights. DIR: its bundle, as ``benchmarks/families.py --work`` leaves it.

graph: the encoder's and the decoder's graph for ONNX Runtime, each from the reference's own input, and both in a row.
PyTorch: the same, eager in float32. float64 decoder: PyTorch's, on the latent of the encoder's graph, which is
what no decoder could do better. Cases of 512x512 have no round trip, and are left out.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import vaedeploy as vd
from vaedeploy.bundle.golden import NAME, decode_golden
from vaedeploy.numerics.float64 import call_in_float64
from vaedeploy.runtime.onnxruntime_cpu import Session
from vaedeploy.source import load_reference
from vaedeploy.verify.graphs import prepare_photo
from vaedeploy.verify.reference import diffusion_space, model_space


def off(found: NDArray[Any], expected: NDArray[Any]) -> str:
    difference = found.astype(np.float64) - expected
    return f"{np.linalg.norm(difference) / np.linalg.norm(expected.astype(np.float64)):.1e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vae")
    parser.add_argument("--bundle", type=Path, required=True)
    args = parser.parse_args()
    bundle = vd.Bundle.open(args.bundle, verify_hashes=False)
    reference, spec = load_reference(args.vae, "random:0"), bundle.manifest.latent
    encoder, decoder = (Session(bundle.graph(part, "onnxruntime")) for part in ("encoder", "decoder"))
    for case in decode_golden(bundle.read(NAME), bundle.manifest.vae.identity):
        if not case.round_trip:
            continue
        image = prepare_photo(bundle.manifest, case.photo)
        latent = next(iter(case.latents.values()))

        def decode(given: NDArray[Any]) -> NDArray[Any]:
            return decoder.run(["image"], {"latent": given})[0]  # type: ignore[no-any-return]

        def eager(given: NDArray[Any]) -> NDArray[Any]:
            with torch.no_grad():
                made: NDArray[Any] = reference.decoder(
                    torch.from_numpy(model_space(given, spec).astype(np.float32))
                ).numpy()
            return made

        encoded = encoder.run(encoder.outputs[:1], {encoder.inputs[0]: image})[0]
        with torch.no_grad():
            raw = reference.encoder(torch.from_numpy(np.ascontiguousarray(image)))
        raw = raw if isinstance(raw, tuple) else (raw,)
        theirs = next(iter(diffusion_space(tuple(r.numpy().astype(np.float64) for r in raw), spec).values()))
        (best,) = call_in_float64(reference.decoder, torch.from_numpy(model_space(encoded, spec)))
        graph = off(encoded, latent), off(decode(latent), case.image), off(decode(encoded), case.image)
        pytorch = off(theirs, latent), off(eager(latent), case.image), off(eager(theirs), case.image)
        print(f"{case.name}: graph {' '.join(graph)}, PyTorch {' '.join(pytorch)}", end="")
        print(f", float64 decoder {off(best.numpy(), case.image)}", flush=True)


if __name__ == "__main__":
    main()

"""Time the decoder of Qwen-Image's VAE as a 2-D network and as diffusers' 3-D class, on one frame, with seeded weights.

    python benchmarks/one_frame.py [--base-dim 96] [--size 192] [--rounds 5] [--threads 1] [--json FILE]

The forms are the class' own graph with its five axes, and the 2-D one that vaedeploy makes, each as PyTorch exports it
and after the rules that ``vaedeploy export`` applies. They take turns in ONNX Runtime with the package's session;
PyTorch eager runs the class beside them. Times are medians of ratios to the class' own graph, turn by turn, with the
lowest and the highest ratio; errors are relative L2 against the class in float64, before its clamp. ``--base-dim 48``
is half the published width.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from main_job import ratio, take_turns
from torch import Tensor, nn

from vaedeploy.graph.graph import load_graph, save_form, save_graph
from vaedeploy.graph.trace import trace_graph
from vaedeploy.rewrite import rewrite_graph
from vaedeploy.runtime.onnxruntime_cpu import Session
from vaedeploy.source.autoencoder_kl_wan.config import QwenImage
from vaedeploy.source.families import family_of
from vaedeploy.source.network import build, random_tensors
from vaedeploy.values.latent import LatentSpec
from vaedeploy.values.reference import Reference

CLASS = "3-D, plain export"


class ThreeDimensional(nn.Module):
    """The class' decoder on one frame, as its ``_decode`` runs it, without the clamp."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latent: Tensor) -> Tensor:
        self.vae.clear_cache()
        latent = self.vae.post_quant_conv(latent[:, :, None])
        image: Tensor = self.vae.decoder(latent, feat_cache=self.vae._feat_map, feat_idx=[0])
        return image[:, :, 0]


def decoders(architecture: QwenImage) -> dict[str, nn.Module]:
    import msgspec
    from diffusers import AutoencoderKLQwenImage

    weights = random_tensors(architecture, 0)
    fields = msgspec.structs.asdict(architecture)
    vae = AutoencoderKLQwenImage(**{name: list(v) if isinstance(v, tuple) else v for name, v in fields.items()})
    vae.load_state_dict(weights)
    vae.eval().requires_grad_(False)
    vae.encoder = nn.Identity()
    return {"3-D": ThreeDimensional(vae), "2-D": build(architecture, weights)[1]}


def write_forms(name: str, decoder: nn.Module, latent: LatentSpec, folder: Path) -> dict[str, Path]:
    plain, rewritten = folder / f"{name}.onnx", folder / f"{name}.rules.onnx"
    save_graph(trace_graph(Reference(nn.Identity(), decoder, latent), "decoder"), plain)
    made = rewrite_graph(load_graph(plain, "decoder"))
    save_form(made.graph, rewritten)
    nodes = len(list(load_graph(plain, "decoder").model.graph))
    print(f"{name}: {nodes} nodes; rules: {', '.join(f'{o.rule} {o.matches}' for o in made.outcomes)}", flush=True)
    return {f"{name}, plain export": plain, f"{name}, all rules": rewritten}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-dim", type=int, default=96)
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    architecture = QwenImage(base_dim=args.base_dim)
    shape = family_of(architecture).latent(architecture)
    latent = LatentSpec(shape.channels, shape.factor, scale=1.0)
    given = torch.randn((1, 16, args.size // 8, args.size // 8), generator=torch.Generator().manual_seed(0))
    modules = decoders(architecture)
    calls: dict[str, Callable[[], Any]] = {"3-D, PyTorch eager": lambda: [modules["3-D"](given).numpy()]}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for name, decoder in modules.items():
            for form, path in write_forms(name, decoder, latent, Path(folder)).items():
                session = Session(path, args.threads)
                calls[form] = functools.partial(session.run, session.outputs[:1], {session.inputs[0]: given.numpy()})
        images = {name: call()[0] for name, call in calls.items()}
        times = take_turns(calls, args.rounds)
        exact = modules["3-D"].double()(given.double()).numpy()
    result: dict[str, Any] = {}
    for name, values in times.items():
        ratios = [a / b for a, b in zip(values, times[CLASS], strict=True)]
        result[name] = {
            "s": statistics.median(values),
            "over the class' graph": ratio(values, times[CLASS]),
            "lowest": min(ratios),
            "highest": max(ratios),
            "relative L2": float(np.linalg.norm(images[name] - exact) / np.linalg.norm(exact)),
        }
        print(f"{name:20} {'  '.join(f'{key} {value:.4g}' for key, value in result[name].items())}", flush=True)
    if args.json:
        args.json.write_text(json.dumps({"arguments": vars(args) | {"json": None}, **result}, indent=1) + "\n")


if __name__ == "__main__":
    main()

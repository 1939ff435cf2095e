"""Make what ``rewrites.py`` and ``peers.py`` take as ``--optimum``: optimum-onnx's export of the benchmarks' weights.

optimum-onnx pins older versions than this project, so it needs an environment of its own, with the same PyTorch. (The
published figures are of optimum-onnx 0.1.0 with optimum 2.1.0, transformers 4.57.6 and diffusers 0.35.2.)

    python -m venv ENV
    ENV/bin/pip install torch==2.13.0 optimum-onnx==0.1.0 'diffusers<0.36' onnxruntime
    python benchmarks/export_optimum.py weights DIR          # this environment: writes DIR, a VAE as diffusers saves it
    ENV/bin/python benchmarks/export_optimum.py graph DIR    # the other one: writes DIR/optimum-PART.onnx
"""

from __future__ import annotations

import argparse
from pathlib import Path


def save_weights(folder: Path) -> None:
    import msgspec
    from diffusers import AutoencoderKL

    from vaedeploy.source import get_preset
    from vaedeploy.source.network import random_tensors

    architecture = get_preset("mse840k").config
    vae = AutoencoderKL(**msgspec.structs.asdict(architecture))
    vae.load_state_dict(random_tensors(architecture, 0))
    vae.save_pretrained(folder)


def export_graphs(folder: Path) -> None:
    """Export both halves as ``optimum-cli export onnx`` does for the VAE of a pipeline, with its defaults."""
    from diffusers import AutoencoderKL
    from optimum.exporters.onnx import export
    from optimum.exporters.onnx.model_configs import VaeDecoderOnnxConfig, VaeEncoderOnnxConfig

    vae = AutoencoderKL.from_pretrained(folder)
    vae.forward = lambda latent_sample: vae.decode(z=latent_sample)
    export(vae, VaeDecoderOnnxConfig(vae.config, task="semantic-segmentation"), folder / "optimum-decoder.onnx")
    vae.forward = lambda sample: {"latent_parameters": vae.encode(x=sample)["latent_dist"].parameters}
    export(vae, VaeEncoderOnnxConfig(vae.config, task="semantic-segmentation"), folder / "optimum-encoder.onnx")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["weights", "graph"])
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    {"weights": save_weights, "graph": export_graphs}[args.step](args.folder)


if __name__ == "__main__":
    main()

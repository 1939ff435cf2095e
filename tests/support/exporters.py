"""Graphs as torch's two exporters write them."""

from __future__ import annotations

import io
import logging
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch


class Decoder(torch.nn.Module):
    """The decoder of a VAE of diffusers."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        image: torch.Tensor = self.vae.decode(latent).sample
        return image


def export_decoder(module: torch.nn.Module, path: Path, opset: int) -> None:
    """``latent`` (B, 4, h, w) -> ``image``, with batch, height and width dynamic: by torch's dynamo exporter, and at
    opset 17 by its TorchScript exporter.
    """
    example = torch.zeros(2, 4, 6, 10)
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            names = {"input_names": ["latent"], "output_names": ["image"], "opset_version": opset}
            if opset > 17:
                dynamic = {"dynamic_shapes": (dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC),)}
                torch.onnx.export(module, (example,), path, dynamo=True, **names, **dynamic)
            else:
                axes = {"dynamic_axes": {"latent": {0: "batch", 2: "height", 3: "width"}}}
                torch.onnx.export(module, (example,), path, dynamo=False, **names, **axes)
    finally:
        logging.disable(logging.NOTSET)

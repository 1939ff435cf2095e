"""Weights of the networks that LPIPS and DISTS look through: seeded ones, in the files that torchvision's lie in."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import torch


def write_weights(home: Path, network: str) -> Path:
    """Write weights of ``alexnet`` or ``vgg16`` into the place that PyTorch has for them under ``home``, TORCH_HOME.

    The layers behind the features, which neither metric reads, are one zero each, stretched: a few MB in all.
    """
    from torchvision import models

    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in getattr(models, network)().state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(shape, generator=generator) * (2 / shape[1:].numel()) ** 0.5
        if name.startswith("features") and len(shape) == 4
        else torch.zeros(1).expand(shape)
        for name, shape in shapes.items()
    }
    file = weights_file(home, network)
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(weights, file)
    return file


def weights_file(home: Path, network: str) -> Path:
    from torchvision import models

    url: str = models.get_model_weights(network).DEFAULT.url
    return home / "hub" / "checkpoints" / Path(urlsplit(url).path).name

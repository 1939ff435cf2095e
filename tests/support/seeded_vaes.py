"""diffusers' classes with seeded weights, and what vaedeploy makes of the folders that they save."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vaedeploy.bundle import Bundle
from vaedeploy.errors import InputError
from vaedeploy.source import load_reference
from vaedeploy.values.reference import Reference


def seeded(make: Callable[[], Any], seed: int = 0) -> Any:
    """What ``make`` builds, with every parameter and every statistic drawn: at 1 and 0, mistakes would not show."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae = make().eval().requires_grad_(False)
        for name, tensor in vae.state_dict().items():
            if tensor.is_floating_point() and sum(side > 1 for side in tensor.shape) <= 1:
                centre = 0.0 if name.endswith(("bias", "running_mean")) else 1.0
                tensor.copy_(centre + 0.2 * torch.randn_like(tensor))
    return vae


def photo(*size: int, seed: int = 1) -> Tensor:
    """Images (2, 3, *size) in [-1, 1], float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((2, 3, *size), generator=generator, dtype=torch.float64) * 2 - 1


def saved(vae: Any, path: Path, **changes: Any) -> Path:
    """The folder that ``save_pretrained`` writes, with these changes to its config.json; a change to None removes."""
    vae.save_pretrained(path)
    if changes:
        file = path / "config.json"
        config = {**json.loads(file.read_text()), **changes}
        file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return path


def doubled(reference: Reference) -> tuple[nn.Module, nn.Module]:
    """(encoder, decoder) in float64."""
    return reference.encoder.double(), reference.decoder.double()


def error(found: Tensor, expected: Tensor) -> float:
    """Relative L2."""
    assert found.shape == expected.shape
    return float((found - expected).norm() / expected.norm())


def folds(bundle: Bundle) -> int:
    """How many upsamplings of a bundle's decoder were folded into convolutions."""
    manifest = bundle.manifest
    return manifest.rewrites[manifest.graphs["decoder"]["onnxruntime"]]["fold_upsampling"]


def message_of(kind: type[InputError], path: Path, **contract: Any) -> str:
    with pytest.raises(kind) as caught:
        load_reference(path, **contract)
    return str(caught.value)

"""An architecture as PyTorch modules: the shapes of its tensors, weights from a seed, and its two halves."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from vaedeploy.errors import WeightsError
from vaedeploy.source.families import family_of
from vaedeploy.source.family import Architecture
from vaedeploy.system.installs import install_command, version_of
from vaedeploy.system.text import shown


def build(architecture: Architecture, weights: Mapping[str, Tensor]) -> tuple[nn.Module, nn.Module]:
    """Build both halves, (encoder, decoder), frozen and in eval mode.

    weights: the tensors that ``tensor_shapes`` names, in float32, with or without those that only state the latent
    contract.
    """
    blank = _blank(architecture)
    zeros = {name: torch.zeros((), dtype=torch.int64) for name in counters(architecture)}
    blank.load_state_dict({**zeros, **weights}, strict=False, assign=True)
    encoder, decoder = family_of(architecture).halves(blank, architecture)
    # The halves, not the blank: a family may derive its own tensors from it.
    return encoder.eval().requires_grad_(False), decoder.eval().requires_grad_(False)


@functools.cache
def tensor_shapes(architecture: Architecture) -> Mapping[str, tuple[int, ...]]:
    """The shape of every weight tensor by its name in diffusers.

    Raises WeightsError for an architecture that diffusers cannot build.
    """
    return {name: tuple(t.shape) for name, t in _tensors(architecture).items() if not _is_counter(t)}


@functools.cache
def counters(architecture: Architecture) -> frozenset[str]:
    """Names of its integer tensors: counters of batch norms from training, which no computation reads."""
    return frozenset(name for name, tensor in _tensors(architecture).items() if _is_counter(tensor))


@functools.cache
def _tensors(architecture: Architecture) -> Mapping[str, Tensor]:
    """All its tensors, on the meta device."""
    state: Mapping[str, Tensor] = _blank(architecture).state_dict()
    return state


def random_tensors(architecture: Architecture, seed: int, only: Collection[str] | None = None) -> dict[str, Tensor]:
    """Draw float32 weights for every tensor from ``seed``, independent of torch's global random state.

    only: names of tensors; the others are left out.

    Kernels are scaled so that they preserve the magnitude of activations. Normalisation weights (around 1) and all
    biases are drawn too: their defaults of 1 and 0 would hide a mistake in handling them.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in tensor_shapes(architecture).items() if only is None or only else ():
        noise = torch.randn(shape, generator=generator, dtype=torch.float32)
        if name.endswith(("bias", "running_mean")):
            weights[name] = 0.1 * noise
        elif len(shape) == 1:
            weights[name] = 1.0 + 0.1 * noise
        else:
            weights[name] = noise / math.sqrt(math.prod(shape[1:]))
    return weights if only is None else {name: weights[name] for name in only}


def _is_counter(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() and tensor.ndim == 0


def _blank(architecture: Architecture) -> nn.Module:
    family = family_of(architecture)
    # On the meta device, tensors take no memory, and no time is spent on initial values that are replaced at once.
    try:
        with torch.device("meta"):
            return family.blank(architecture)
    except ImportError as error:
        raise WeightsError(
            f"diffusers {version_of('diffusers')} has no {family.class_name}; it is older than vaedeploy needs it. "
            f"Run: {install_command('export')}"
        ) from error
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        article = "an" if family.class_name.startswith("A") else "a"
        raise WeightsError(
            f"diffusers cannot build {article} {family.class_name} of this config: {shown(str(error))}"
        ) from error

"""``Reference``: a VAE as two PyTorch modules and its latent contract."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from vaedeploy.errors import InputError
from vaedeploy.values.latent import LatentSpec
from vaedeploy.values.origin import Origin

if TYPE_CHECKING:
    from torch import nn


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Context in which a module is in eval mode. Afterwards each of its submodules is in the mode that it had."""
    training = [each for each in module.modules() if each.training]
    module.eval()
    try:
        yield
    finally:
        for each in training:
            each.training = True  # train() would change submodules too


OWN_MODULES = Origin(kind="modules", location="", sha256=None, preset=None)
"""The origin of a ``Reference`` that the user makes from two modules."""


@dataclass(frozen=True)
class Reference:
    """A VAE as two PyTorch modules, against which every later stage is judged.

    Any two modules can be used, as long as they are in float32 and on the CPU. They run in eval mode; afterwards each
    of their submodules is in the mode that it had.

    encoder: image (B, N, H, W) in [-1, 1] -> raw latent z (B, C, h, w), or its (mean, std) if ``latent.sampled``.
    decoder: raw latent z (B, C, h, w) -> image (B, N, H, W), not clamped.
    latent: the latent contract. The graph applies its scale and shift; the modules do not. Its ``image_channels`` is N:
        3 for RGB images, 4 for RGBA.
    name: the name in messages and tables, and of the default output directory.
    origin: where the weights came from. licence: of the weights, if known.
    architecture: the class that the modules were made from, such as ``AutoencoderKL``.

    Raises InputError if the encoder or the decoder is not a ``torch.nn.Module``, or if ``latent`` is not a
    ``LatentSpec``.
    """

    encoder: nn.Module
    decoder: nn.Module
    latent: LatentSpec
    name: str = "vae"
    origin: Origin = OWN_MODULES
    licence: str | None = None
    architecture: str = "modules"

    def __post_init__(self) -> None:
        from torch import nn

        for part in ("encoder", "decoder"):
            module = getattr(self, part)
            if not isinstance(module, nn.Module):
                raise InputError(f"the {part} is of type {type(module).__name__}; it must be a torch.nn.Module")
        if not isinstance(self.latent, LatentSpec):
            raise InputError(
                f"latent is {self.latent!r}; it must be a contract, such as "
                "vaedeploy.LatentSpec(channels=4, factor=8, scale=0.18215)"
            )

    def __repr__(self) -> str:
        return f"Reference({self.name!r}, {self.architecture}, {self.latent})"

    @functools.cached_property
    def identity(self) -> str:
        """sha256 over the latent contract and the names, dtypes, shapes and bytes of both modules' tensors."""
        import torch

        digest = hashlib.sha256(msgspec.json.encode(self.latent))
        for part, module in (("encoder", self.encoder), ("decoder", self.decoder)):
            for name, tensor in sorted(module.state_dict().items()):
                digest.update(f"\n{part} {name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

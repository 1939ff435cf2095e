"""``Reference``: a VAE as two PyTorch modules and its latent contract."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from vaedeploy.errors import InputError
from vaedeploy.values.latent import LatentSpec
from vaedeploy.values.origin import Origin

if TYPE_CHECKING:
    from torch import nn


OWN_MODULES = Origin(kind="modules", location="", sha256=None, preset=None)


@dataclass(frozen=True)
class Reference:
    """A VAE as two PyTorch modules, which every later stage is judged against. Any two modules of your own serve, in
    float32 and on the CPU; they are put into eval mode, and stay in it.

    encoder: image (B, 3, H, W) in [-1, 1] -> raw latent z (B, C, h, w), or (mean, std) of it when ``latent.sampled``.
    decoder: raw latent (B, C, h, w) -> image (B, 3, H, W), not clamped.
    latent: the latent contract; its scale and shift are applied by the graph, not by the modules.
    name: the default output directory, and what people are shown.

    Raises InputError for an encoder or a decoder that is not a module, and for a latent contract that is none.
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
            module.eval()
        if not isinstance(self.latent, LatentSpec):
            raise InputError(
                f"latent is {self.latent!r}; it must be a contract, such as "
                "vaedeploy.LatentSpec(channels=4, factor=8, scale=0.18215)"
            )

    def __repr__(self) -> str:
        return f"Reference({self.name!r}, {self.architecture}, {self.latent})"

    @functools.cached_property
    def identity(self) -> str:
        """sha256 over the names, dtypes, shapes and bytes of both modules' tensors, and the latent contract."""
        import torch

        digest = hashlib.sha256(msgspec.json.encode(self.latent))
        for part, module in (("encoder", self.encoder), ("decoder", self.decoder)):
            for name, tensor in sorted(module.state_dict().items()):
                digest.update(f"\n{part} {name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

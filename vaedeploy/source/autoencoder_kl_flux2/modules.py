"""The halves of diffusers' ``AutoencoderKLFlux2``, whose latents are packed as its diffusion models see them."""

from __future__ import annotations

from torch import Tensor, nn

from vaedeploy.source.halves import Decoder, Encoder
from vaedeploy.source.pack import Packing, pack, unpack


class PackedEncoder(Encoder):
    """Encoder: image (B, N, H, W) in [-1, 1] -> (mean, std) of the packed latent, each (B, 4C, H/2f, W/2f)."""

    def __init__(self, encoder: nn.Module, quant_conv: nn.Module | None, packing: Packing) -> None:
        super().__init__(encoder, quant_conv)
        self.packing = packing

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = super().forward(image)
        return pack(mean, self.packing), pack(std, self.packing)


class PackedDecoder(Decoder):
    """Decoder: packed latent (B, 4C, h, w) -> image (B, N, 2f*h, 2f*w), not clamped."""

    def __init__(self, decoder: nn.Module, post_quant_conv: nn.Module | None, packing: Packing) -> None:
        super().__init__(decoder, post_quant_conv)
        self.packing = packing

    def forward(self, latent: Tensor) -> Tensor:
        return super().forward(unpack(latent, self.packing))

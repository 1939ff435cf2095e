"""A small VAE of each family, whose class diffusers builds from these arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import diffusers
from torch import Tensor, nn

from vaedeploy.source.families import FAMILIES
from vaedeploy.source.network import random_tensors


class Case(NamedTuple):
    """channels, factor: of the latents that the diffusion model sees. scale, shift: None for what weights state."""

    class_name: str
    arguments: dict[str, Any]
    channels: int
    factor: int
    scale: float | None
    shift: float | None = 0.0
    sampled: bool = True

    def config(self) -> dict[str, Any]:
        """Its config.json."""
        return {"_class_name": self.class_name, "_diffusers_version": diffusers.__version__, **self.arguments}

    def tensors(self, seed: int = 0) -> dict[str, Tensor]:
        """Seeded weights, float32."""
        architecture = FAMILIES[self.class_name].read(self.config())
        return random_tensors(architecture, seed)

    def theirs(self, seed: int = 0) -> nn.Module:
        """The class of diffusers with those weights, in eval mode."""
        module = getattr(diffusers, self.class_name)(**self.arguments)
        missing, unexpected = module.load_state_dict(self.tensors(seed), strict=False)
        assert not unexpected
        assert all(name.endswith("num_batches_tracked") for name in missing)
        made: nn.Module = module.eval().requires_grad_(False)
        return made

    def folder(self, path: Path, seed: int = 0) -> Path:
        """A folder that the class itself saved."""
        self.theirs(seed).save_pretrained(path)  # type: ignore[operator]
        return path


def kl_blocks(count: int) -> dict[str, Any]:
    return {"down_block_types": ("DownEncoderBlock2D",) * count, "up_block_types": ("UpDecoderBlock2D",) * count}


CASES = {
    "AutoencoderKL": Case(
        "AutoencoderKL",
        {"block_out_channels": (8, 16), "norm_num_groups": 4, "scaling_factor": 0.5, **kl_blocks(2)},
        channels=4,
        factor=2,
        scale=0.5,
    ),
    "AutoencoderKLFlux2": Case(
        "AutoencoderKLFlux2",
        {
            "block_out_channels": (8, 16),
            "decoder_block_out_channels": (4, 8),
            "layers_per_block": 1,
            "latent_channels": 3,
            "norm_num_groups": 4,
            "sample_size": 32,
            **kl_blocks(2),
        },
        channels=12,
        factor=4,
        scale=None,
        shift=None,
    ),
    "AutoencoderTiny": Case(
        "AutoencoderTiny",
        {
            "encoder_block_out_channels": (8, 8, 8),
            "decoder_block_out_channels": (8, 8, 8),
            "num_encoder_blocks": (1, 2, 2),
            "num_decoder_blocks": (2, 2, 1),
        },
        channels=4,
        factor=4,
        scale=1.0,
        sampled=False,
    ),
    "AutoencoderDC": Case(
        "AutoencoderDC",
        {
            "latent_channels": 8,
            "attention_head_dim": 4,
            "encoder_block_types": ("ResBlock", "EfficientViTBlock"),
            "decoder_block_types": ("ResBlock", "EfficientViTBlock"),
            "encoder_block_out_channels": (8, 16),
            "decoder_block_out_channels": (8, 16),
            "encoder_layers_per_block": (1, 1),
            "decoder_layers_per_block": (1, 1),
            "encoder_qkv_multiscales": ((), (5,)),
            "decoder_qkv_multiscales": ((), (5,)),
            "decoder_norm_types": ("batch_norm", "rms_norm"),
            "decoder_act_fns": ("relu", "silu"),
            "downsample_block_type": "conv",
            "upsample_block_type": "interpolate",
            "scaling_factor": 0.41407,
        },
        channels=8,
        factor=2,
        scale=0.41407,
        sampled=False,
    ),
    "AutoencoderKLHunyuanImage": Case(
        "AutoencoderKLHunyuanImage",
        {
            "in_channels": 3,
            "out_channels": 3,
            "latent_channels": 4,
            "block_out_channels": (32, 64),
            "layers_per_block": 1,
            "spatial_compression_ratio": 2,
            "sample_size": 32,
            "scaling_factor": 0.75289,
        },
        channels=4,
        factor=2,
        scale=0.75289,
    ),
}
"""Class name -> its case."""

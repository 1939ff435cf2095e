"""A small VAE of each family, whose class diffusers builds from these arguments."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify
from torch import Tensor, nn

from vaedeploy.source.families import FAMILIES
from vaedeploy.source.network import random_tensors


def encode(theirs: Any, image: Tensor) -> list[Tensor]:
    """What the class encodes ``image`` to: a latent, or mean and deviation."""
    encoded = theirs.encode(image)
    if "latent_dist" in encoded:
        return [encoded.latent_dist.mean, encoded.latent_dist.std]
    return [encoded.latents if "latents" in encoded else encoded.latent]


def decode(theirs: Any, latent: Tensor) -> Tensor:
    """What the class decodes ``latent`` to."""
    image: Tensor = theirs.decode(latent).sample
    return image


UPSAMPLING = ("WanUpsample", "QwenImageUpsample", "QwenImage21Upsample")


def encode_frame(theirs: Any, image: Tensor) -> list[Tensor]:
    """``encode`` for a class that takes videos: one frame."""
    return [tensor[:, :, 0] for tensor in encode(theirs, image[:, :, None])]


def decode_frame(theirs: Any, latent: Tensor) -> Tensor:
    """``decode`` for the classes of Wan and Qwen-Image: one frame, as their ``_decode`` does before it clamps.

    Their upsampling, which casts to float32, keeps to the type of ``latent`` here.
    """
    for module in theirs.modules():
        if type(module).__name__ in UPSAMPLING:
            module.__class__ = nn.Upsample
    theirs.clear_cache()
    first = {} if isinstance(theirs, diffusers.AutoencoderKLQwenImage) else {"first_chunk": True}
    latent = theirs.post_quant_conv(latent[:, :, None])
    image = theirs.decoder(latent, feat_cache=theirs._feat_map, feat_idx=[0], **first)
    frame: Tensor = unpatchify(image, getattr(theirs.config, "patch_size", None) or 1)[:, :, 0]
    return frame


def decode_unquantised(theirs: Any, latent: Tensor) -> Tensor:
    """``decode`` without the codebook, as Kandinsky's pipelines do."""
    image: Tensor = theirs.decode(latent, force_not_quantize=True).sample
    return image


def encode_unsigned(theirs: Any, image: Tensor) -> list[Tensor]:
    """``encode`` for a class whose images are in [0, 1]."""
    return encode(theirs, image / 2 + 0.5)


def decode_unsigned(theirs: Any, latent: Tensor) -> Tensor:
    """``decode`` for a class whose images are in [0, 1]."""
    return decode(theirs, latent) * 2 - 1


def decode_videos_of_one_frame(theirs: Any, latent: Tensor) -> Tensor:
    """``decode`` of Stable Video Diffusion's class, for images that have nothing to do with each other."""
    image: Tensor = theirs.decode(latent, num_frames=1).sample
    return image


CHANNELS = {
    "AutoencoderDC": ("in_channels",),
    "AutoencoderKLQwenImage": ("input_channels",),
    "AutoencoderKLKVAE": ("in_channels",),
}
"""Class -> its arguments for the channels of images, where they are not in_channels and out_channels."""


class Case(NamedTuple):
    """channels, factor: of the latents that the diffusion model sees. scale, shift: None for what weights state.

    stated: whether a config.json that the class saved states scale and shift. Where it does not, they are given.
    folds: how many upsamplings of the decoder are followed by a convolution into which they are folded. encode, decode:
    what halves are compared with. tolerance: relative L2 by which they may differ in float64.
    """

    class_name: str
    arguments: dict[str, Any]
    channels: int
    factor: int
    scale: float | tuple[float, ...] | None
    shift: float | tuple[float, ...] | None = 0.0
    sampled: bool = True
    image_channels: int = 3
    folds: int = 1
    encode: Callable[[Any, Tensor], list[Tensor]] = encode
    decode: Callable[[Any, Tensor], Tensor] = decode
    tolerance: float = 0.0
    stated: bool = True

    def given(self) -> dict[str, Any]:
        """What has to be given to load a folder that the class saved."""
        return {} if self.stated else {"scale": self.scale, "shift": self.shift}

    def with_opacity(self) -> Case:
        """The same network, with a fourth channel in its images."""
        channels = 4 * self.arguments.get("patch_size", 1) ** 2
        fields = CHANNELS.get(self.class_name, ("in_channels", "out_channels"))
        return self._replace(arguments={**self.arguments, **dict.fromkeys(fields, channels)}, image_channels=4)

    def config(self) -> dict[str, Any]:
        """Its config.json."""
        return {"_class_name": self.class_name, "_diffusers_version": diffusers.__version__, **self.arguments}

    def tensors(self, seed: int = 0) -> dict[str, Tensor]:
        """Seeded weights, float32."""
        architecture = FAMILIES[self.class_name].read(self.config())
        return random_tensors(architecture, seed)

    def theirs(self, seed: int = 0) -> nn.Module:
        """The class of diffusers with those weights, in eval mode."""
        module = class_of(self.class_name)(**self.arguments)
        missing, unexpected = module.load_state_dict(self.tensors(seed), strict=False)
        assert not unexpected
        assert all(name.endswith("num_batches_tracked") for name in missing)
        made: nn.Module = module.eval().requires_grad_(False)
        return made

    def folder(self, path: Path, seed: int = 0) -> Path:
        """A folder that the class itself saved."""
        self.theirs(seed).save_pretrained(path)  # type: ignore[operator]
        return path


def class_of(name: str) -> Any:
    """A class of diffusers by its name."""
    if name == "PaellaVQModel":
        from diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model import PaellaVQModel

        return PaellaVQModel
    return getattr(diffusers, name)


def kl_blocks(count: int) -> dict[str, Any]:
    return {"down_block_types": ("DownEncoderBlock2D",) * count, "up_block_types": ("UpDecoderBlock2D",) * count}


ONE_FRAME: dict[str, Any] = {
    "base_dim": 8,
    "z_dim": 4,
    "dim_mult": [2, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [True],
    "latents_mean": [0.25, -0.5, 1.0, 0.0],
    "latents_std": [0.5, 2.0, 1.0, 4.0],
}
"""Arguments of the classes of Wan and Qwen-Image."""

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
        folds=2,
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
        folds=0,
    ),
    "AutoencoderKLQwenImage": Case(
        "AutoencoderKLQwenImage",
        {**ONE_FRAME},
        channels=4,
        factor=2,
        scale=(2.0, 0.5, 1.0, 0.25),
        shift=(0.25, -0.5, 1.0, 0.0),
        encode=encode_frame,
        decode=decode_frame,
        tolerance=1e-14,
    ),
    "AutoencoderKLWan": Case(
        "AutoencoderKLWan",
        {
            **ONE_FRAME,
            "decoder_base_dim": 16,
            "is_residual": True,
            "in_channels": 12,
            "out_channels": 12,
            "patch_size": 2,
        },
        channels=4,
        factor=4,
        scale=(2.0, 0.5, 1.0, 0.25),
        shift=(0.25, -0.5, 1.0, 0.0),
        encode=encode_frame,
        decode=decode_frame,
        tolerance=1e-14,
    ),
    "AutoencoderKLQwenImage21": Case(
        "AutoencoderKLQwenImage21",
        {**ONE_FRAME, "decoder_base_dim": 16, "is_residual": True},
        channels=4,
        factor=2,
        scale=(2.0, 0.5, 1.0, 0.25),
        shift=(0.25, -0.5, 1.0, 0.0),
        image_channels=4,
        encode=encode_frame,
        decode=decode_frame,
        tolerance=1e-14,
    ),
    "VQModel": Case(
        "VQModel",
        {
            "block_out_channels": (32, 32, 32),
            "latent_channels": 4,
            "num_vq_embeddings": 16,
            "norm_type": "spatial",
            "scaling_factor": 0.18215,
            **kl_blocks(3),
            "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"),
        },
        channels=4,
        factor=4,
        scale=1.0,
        sampled=False,
        folds=2,
        decode=decode_unquantised,
    ),
    "PaellaVQModel": Case(
        "PaellaVQModel",
        {"levels": 2, "bottleneck_blocks": 1, "embed_dim": 16, "num_vq_embeddings": 16, "scale_factor": 0.3764},
        channels=4,
        factor=4,
        scale=1 / 0.3764,
        sampled=False,
        folds=0,
        encode=encode_unsigned,
        decode=decode_unsigned,
    ),
    "AsymmetricAutoencoderKL": Case(
        "AsymmetricAutoencoderKL",
        {
            "down_block_out_channels": (8, 16),
            "up_block_out_channels": (12, 24),
            "norm_num_groups": 4,
            "scaling_factor": 0.18215,
            **kl_blocks(2),
        },
        channels=4,
        factor=2,
        scale=0.18215,
    ),
    "AutoencoderKLTemporalDecoder": Case(
        "AutoencoderKLTemporalDecoder",
        {
            "block_out_channels": (32, 32),
            "layers_per_block": 2,
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "scaling_factor": 0.18215,
        },
        channels=4,
        factor=2,
        scale=0.18215,
        decode=decode_videos_of_one_frame,
        tolerance=1e-14,
    ),
    "AutoencoderKLKVAE": Case(
        "AutoencoderKLKVAE",
        {
            "channels": 32,
            "ch_mult": (1, 2),
            "num_enc_blocks": 1,
            "num_dec_blocks": 1,
            "z_channels": 4,
            "sample_size": 32,
        },
        channels=4,
        factor=2,
        scale=0.5,
        shift=0.25,
        stated=False,
    ),
}
"""Class name -> its case."""

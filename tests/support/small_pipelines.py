"""Pipelines of diffusers with random small components. Prompts are given as embeddings, so that there is no text
encoder.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image

SIZE = 64
"""Pixels along a side of the images."""


@dataclass(frozen=True)
class Made:
    """A pipeline's components without its VAE, and the arguments that its prompt is given with."""

    components: dict[str, Any]
    prompt: dict[str, Any]


def seeded(make: Callable[[], Any]) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


def unet(inputs: int, channels: int, **options: Any) -> Any:
    from diffusers import UNet2DConditionModel

    return seeded(
        lambda: UNet2DConditionModel(
            sample_size=8,
            in_channels=inputs,
            out_channels=channels,
            block_out_channels=(16, 32),
            layers_per_block=1,
            norm_num_groups=8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=8,
            **options,
        )
    )


def embeddings(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=shape).astype(np.float32))


def sd(channels: int, inputs: int | None = None) -> Made:
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=False
    )
    empty = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    return Made(
        {
            "unet": unet(inputs or channels, channels, cross_attention_dim=16),
            "scheduler": scheduler,
            **empty,
            "requires_safety_checker": False,
        },
        {"prompt_embeds": embeddings(1, 5, 16), "guidance_scale": 1.0},
    )


def sdxl(channels: int) -> Made:
    from diffusers import EulerDiscreteScheduler

    model = unet(
        channels,
        channels,
        cross_attention_dim=16,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=8 * 6 + 12,
    )
    empty = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    return Made(
        {"unet": model, "scheduler": EulerDiscreteScheduler(), **empty, "add_watermarker": False},
        {"prompt_embeds": embeddings(1, 5, 16), "pooled_prompt_embeds": embeddings(1, 12), "guidance_scale": 1.0},
    )


def sd3(channels: int) -> Made:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

    model = seeded(
        lambda: SD3Transformer2DModel(
            sample_size=8,
            patch_size=1,
            in_channels=channels,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_projection_dim=16,
            joint_attention_dim=16,
            pooled_projection_dim=12,
            out_channels=channels,
        )
    )
    empty = dict.fromkeys(f"{kind}{n}" for kind in ("text_encoder", "tokenizer") for n in ("", "_2", "_3"))
    return Made(
        {"transformer": model, "scheduler": FlowMatchEulerDiscreteScheduler(), **empty},
        {"prompt_embeds": embeddings(1, 5, 16), "pooled_prompt_embeds": embeddings(1, 12), "guidance_scale": 1.0},
    )


def flux(channels: int) -> Made:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

    model = seeded(
        lambda: FluxTransformer2DModel(
            patch_size=1,
            in_channels=4 * channels,  # four latents in one token
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            pooled_projection_dim=12,
            axes_dims_rope=(2, 2, 4),
        )
    )
    empty = dict.fromkeys(f"{kind}{n}" for kind in ("text_encoder", "tokenizer") for n in ("", "_2"))
    return Made(
        {"transformer": model, "scheduler": FlowMatchEulerDiscreteScheduler(), **empty},
        {"prompt_embeds": embeddings(1, 5, 16), "pooled_prompt_embeds": embeddings(1, 12), "guidance_scale": 1.0},
    )


MODELS = {
    "StableDiffusion": sd,
    "StableDiffusionXL": sdxl,
    "StableDiffusion3": sd3,
    "Flux": flux,
}


def picture(size: int = SIZE) -> Image.Image:
    y, x = np.mgrid[:size, :size] / size
    return Image.fromarray((255 * np.stack([x, y, (np.sin(9 * x * y) + 1) / 2], axis=-1)).astype(np.uint8))


def mask(size: int = SIZE) -> Image.Image:
    levels = np.zeros((size, size), np.uint8)
    levels[size // 4 : -size // 4, size // 4 :] = 255
    return Image.fromarray(levels)


def pipeline(model: str, task: str, vae: Any, made: Made) -> DiffusionPipeline:
    """task: "" for text to image, "Img2Img" or "Inpaint"."""
    import diffusers

    made_for = getattr(diffusers, f"{model}{task}Pipeline")
    taken = inspect.signature(made_for.__init__).parameters
    pipe = made_for(vae=vae, **{name: value for name, value in made.components.items() if name in taken})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def images_of(pipe: Any, made: Made, task: str, **options: Any) -> np.ndarray:
    """What two steps give, (1, H, W, 3) float32 in [0, 1]."""
    arguments = {"num_inference_steps": 2, "output_type": "np", "height": SIZE, "width": SIZE, **made.prompt}
    if task:
        arguments |= {"image": picture(), "strength": 0.7}
    if task == "Inpaint":
        arguments |= {"mask_image": mask()}
    taken = inspect.signature(pipe.__call__).parameters
    arguments = {name: value for name, value in (arguments | options).items() if name in taken}
    images: np.ndarray = pipe(generator=torch.Generator().manual_seed(0), **arguments).images
    return images

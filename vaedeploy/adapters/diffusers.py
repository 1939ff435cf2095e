"""``BundleVAE``: a bundle where a pipeline of diffusers has its VAE.

>>> from vaedeploy.adapters.diffusers import BundleVAE
>>> pipe = StableDiffusionPipeline.from_pretrained("owner/model", vae=BundleVAE.from_bundle("mse840k"))
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTinyOutput
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import Tensor, nn
from torch.utils.dlpack import from_dlpack

from vaedeploy.errors import ImageError, InputError, LatentError
from vaedeploy.runtime import VAE
from vaedeploy.values.latent import LatentSpec

Method = TypeVar("Method", bound=Callable[..., Any])


def _not_traced(method: Method) -> Method:
    """``method``, which ``torch.compile`` leaves alone: otherwise it would trace into the runtime and fail."""
    return cast(Method, torch.compiler.disable(method))  # type: ignore[no-untyped-call]


class BundleVAE(nn.Module):
    """A VAE for diffusers' pipelines that runs a bundle. It has the config that pipelines read, and no parameters.

        >>> pipe.vae = BundleVAE.from_bundle("mse840k").to(pipe.device, pipe.dtype)
        >>> pipe("an astronaut", generator=torch.Generator().manual_seed(0)).images[0]

    ``encode`` and ``decode`` take and give the same as in the VAE that was exported: raw latents, which the pipeline
    scales and shifts by ``config``, with noise from the caller's generator. Tensors may be of any floating type and on
    any device. Float32 in the GPU's memory is not copied where the bundle runs on that GPU; everything else is
    converted for the call, and the results have ``dtype`` and are on the device of the argument. The bundle computes in
    its own precision, whatever ``dtype`` is. Nothing has a gradient.

    vae: the bundle, opened; it is not closed here. Raises InputError for anything else.

    Slicing and tiling may be turned on and off, and change nothing.
    """

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        if not isinstance(vae, VAE):
            raise InputError(
                f"vae is of type {type(vae).__name__}; give an open vaedeploy.VAE, or BundleVAE.from_bundle(path)"
            )
        self.vae = vae
        self.config = bundle_config(vae.latent)
        # An empty tensor, which is all that .to(), .half() and .cuda() need.
        self._place: Tensor
        self.register_buffer("_place", torch.empty(0), persistent=False)
        self.eval()

    @classmethod
    def from_bundle(cls, path: str | Path, backend: str | None = None, **options: Any) -> BundleVAE:
        """Open the bundle at ``path``. backend, options, errors, warnings: see ``vaedeploy.VAE``."""
        return cls(VAE(path, backend, **options))

    @property
    def dtype(self) -> torch.dtype:
        """The type of results: float32, or the one last given to ``to``."""
        return self._place.dtype

    @property
    def device(self) -> torch.device:
        """The device of the pipeline's tensors: the CPU, or the one last given to ``to``."""
        return self._place.device

    @_not_traced
    def encode(
        self, x: Tensor, return_dict: bool = True
    ) -> AutoencoderKLOutput | AutoencoderTinyOutput | tuple[DiagonalGaussianDistribution] | tuple[Tensor]:
        """Encode images (B, 3, H, W), or (B, 4, H, W) for RGBA, in [-1, 1] into raw latents (B, C, h, w).

        Gives ``latent_dist``, with ``sample(generator)`` and ``mode()``, or ``latents`` for a VAE without a
        distribution. Raises ImageError, SizeError and BackendError.
        """
        _check_type(x, "image", ImageError, " in [-1, 1]")
        image = _prepared(x, self.vae)
        scale, shift = _numbers(self.vae.latent, x.device)
        if not self.vae.latent.sampled:
            latents = (_tensor(self.vae.encode(image), x.device) / scale + shift).to(self.dtype)
            return AutoencoderTinyOutput(latents) if return_dict else (latents,)
        mean, std = (_tensor(moment, x.device) for moment in self.vae.encode_moments(image))
        parameters = torch.cat([mean / scale + shift, 2 * torch.log(std / scale.abs())], dim=1)
        distribution = DiagonalGaussianDistribution(parameters.to(self.dtype))
        return AutoencoderKLOutput(distribution) if return_dict else (distribution,)

    @_not_traced
    def decode(
        self, z: Tensor, return_dict: bool = True, generator: torch.Generator | None = None
    ) -> DecoderOutput | tuple[Tensor]:
        """Decode raw latents (B, C, h, w) into ``sample``, images (B, 3, H, W) around [-1, 1], not clamped.

        generator: not used; inpainting pipelines pass it. Raises LatentError and BackendError.
        """
        _check_type(z, "latent", LatentError)
        scale, shift = _numbers(self.vae.latent, z.device)
        latent = _prepared((z.float() - shift) * scale, self.vae)
        image = _tensor(self.vae.decode(latent, output="float"), z.device).to(self.dtype)
        return DecoderOutput(image) if return_dict else (image,)

    def forward(
        self,
        sample: Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
    ) -> DecoderOutput | tuple[Tensor]:
        """Encode images and decode the mean of their latents, or with ``sample_posterior`` a sample."""
        (encoded,) = self.encode(sample, return_dict=False)
        if isinstance(encoded, DiagonalGaussianDistribution):
            encoded = encoded.sample(generator) if sample_posterior else encoded.mode()
        return self.decode(encoded, return_dict)

    def enable_tiling(self, *arguments: object, **options: object) -> None:
        """Accepted, since programs call it; the bundle decodes images whole."""

    def disable_tiling(self) -> None:
        """As it is already."""

    def enable_slicing(self) -> None:
        """Accepted, since programs call it; the bundle decodes a batch at once, or as its engines cut it."""

    def disable_slicing(self) -> None:
        """As it is already."""

    def extra_repr(self) -> str:
        """What ``print(pipe.vae)`` shows within the parentheses."""
        return repr(self.vae)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            raise AttributeError(
                f"BundleVAE has no {name}: it runs a bundle's graphs, and has none of the modules of a diffusers VAE. "
                "Pipelines may use encode, decode and config"
            ) from None


class BundleConfig(FrozenDict):
    """A VAE's config as pipelines read it: its true scale and shift, channels and factor. See ``bundle_config``."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"the config of a BundleVAE has no {name}. It has {', '.join(self)}; a pipeline that reads others needs "
            "the VAE that the bundle was made from"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return BundleConfig, (dict(self),)  # a frozen one cannot be filled item by item, as dicts are


def bundle_config(spec: LatentSpec) -> BundleConfig:
    """The config for a latent contract.

    Contracts with one number per channel become ``latents_mean`` and ``latents_std``, as SDXL's pipelines read them,
    with a ``scaling_factor`` of 1.
    """
    vectors = isinstance(spec.scale, tuple) or isinstance(spec.shift, tuple)
    scale, shift = (np.broadcast_to(value, spec.channels).tolist() for value in (spec.scale, spec.shift))
    values = {
        "latent_channels": spec.channels,
        "scaling_factor": 1.0 if vectors else spec.scale,
        "shift_factor": 0.0 if vectors else spec.shift,  # never None: some pipelines add it to a tensor
        "latents_mean": shift if vectors else None,
        "latents_std": [1 / number for number in scale] if vectors else None,
        "force_upcast": False,  # the bundle has its own precision
        "in_channels": spec.image_channels,
        "out_channels": spec.image_channels,
    }
    if spec.factor & (spec.factor - 1) == 0:
        # Pipelines count them: the factor is 2 ** (count - 1). The widths are not known here.
        values["block_out_channels"] = (0,) * spec.factor.bit_length()
    return BundleConfig(values)  # type: ignore[no-untyped-call]


def _check_type(value: object, what: str, error: type[InputError], values: str = "") -> None:
    """Raise ``error`` for what is not a floating-point tensor: torch would convert bytes and complex numbers to one.

    values: its range, for the message.
    """
    if not isinstance(value, Tensor):
        raise error(f"{what} is of type {type(value).__name__}; give a torch.Tensor")
    if not value.is_floating_point():
        raise error(f"{what} is {value.dtype}; give floating numbers{values}")


def _prepared(tensor: Tensor, vae: VAE) -> Any:
    """A tensor as the runtime takes it: float32, contiguous, and in the host's memory where the bundle runs there."""
    tensor = tensor.detach().float().contiguous()
    return tensor if tensor.is_cuda and vae.on_gpu else tensor.cpu().numpy()


def _tensor(array: Any, device: torch.device) -> Tensor:
    """A runtime array as a tensor on ``device``, sharing its memory if it is there already."""
    return from_dlpack(array).to(device)


def _numbers(spec: LatentSpec, device: torch.device) -> tuple[Tensor, Tensor]:
    """Scale and shift, to apply to (B, C, h, w): float32, as the graphs have them."""
    scale, shift = (torch.tensor(value, device=device).reshape(1, -1, 1, 1) for value in (spec.scale, spec.shift))
    return scale, shift

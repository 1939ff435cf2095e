"""The VAEs of a server, and each of their halves as a model of the Open Inference Protocol."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaedeploy.bundle import Bundle
from vaedeploy.errors import InputError
from vaedeploy.runtime import VAE
from vaedeploy.runtime.arrays import FLOATS, check_image, check_latent
from vaedeploy.runtime.unverified import unverified_text
from vaedeploy.serve.joining import Line
from vaedeploy.serve.metrics import Metrics
from vaedeploy.serve.refusals import bad, too_large
from vaedeploy.serve.settings import Settings
from vaedeploy.system.machine import usable_cores
from vaedeploy.values.interface import Interface, Tensor, spatial_axes
from vaedeploy.values.kinds import PARTS, Part
from vaedeploy.values.served import NAME, model_name

CALLS_ON_CPU = 8
"""Calls that run at once on a CPU of fewer cores. On two cores, a small image takes a fifth less CPU time than with two
calls, since ONNX Runtime's threads wait less for work, and no small image waits for a large one.
"""

LARGE = 256 * 256
"""Pixels from which a call is large: it keeps the cores busy by itself. On two cores, eight calls of this size at once
are slower than one after the other, and take the memory of eight.
"""

CORES_OF_A_LARGE_CALL = 8
"""The most cores that a large call keeps busy. Assumed: throughput was measured on two cores only."""

CALLS_ON_GPU = 2
"""Calls that run at once on a GPU: while one computes, the arrays of the other are copied."""


def open_vaes(places: Sequence[str], *, allow_unverified: bool, **options: Any) -> dict[str, VAE]:
    """The VAEs of ``places``, each ``BUNDLE`` or ``NAME=BUNDLE``, open, by name. options: those of ``VAE``.

    Raises InputError for two of one name, a name that cannot be part of a path, and a bundle that is not verified
    (without ``allow_unverified``), and what ``VAE`` raises.
    """
    with ExitStack() as opened:
        vaes: dict[str, VAE] = {}
        for place in places:
            given, path = _split(place)
            bundle = Bundle.open(path, verify_hashes=False)
            if not allow_unverified and (text := unverified_text(bundle)):
                raise InputError(f"{text}. To serve it anyway, give --allow-unverified")
            name = bundle.manifest.vae.name if given is None else given
            if not NAME.fullmatch(name):
                what = f"the VAE of bundle {path} is called {name!r}, which" if given is None else repr(name)
                raise InputError(
                    f"{what} cannot be part of a path; give a name of letters, digits, '.', '_' and '-': NAME={path}"
                )
            if name in vaes:
                raise InputError(
                    f"bundles {vaes[name].path} and {path} are both called {name}; give one another name: NAME={path}"
                )
            vaes[name] = opened.enter_context(VAE(bundle.path, **options))
        opened.pop_all()
        return vaes


def _split(place: str) -> tuple[str | None, str]:
    name, equals, path = place.partition("=")
    # ./a=b is a path with a = in it.
    return (name, path) if equals and "/" not in name and "\\" not in name else (None, place)


@dataclass(frozen=True)
class Model:
    """One half of a VAE."""

    vae_name: str
    vae: VAE
    part: Part
    line: Line

    @property
    def name(self) -> str:
        return model_name(self.vae_name, self.part)

    @property
    def interface(self) -> Interface:
        return self.vae.manifest.interface(self.part)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names that its input may have. The graph's is the first; an image's type says its form."""
        return (self.interface.input,) if self.part == "decoder" else ("image", "image_u8")

    def check_type(self, dtype: np.dtype[Any]) -> None:
        """Raise LatentError or ImageError, with the runtime's sentence, for arrays of a type that is not taken."""
        if dtype not in FLOATS and (self.part == "decoder" or dtype != np.uint8):
            self._check(np.empty(0, dtype))

    def check_request(self, array: NDArray[Any], outputs: Sequence[str], settings: Settings) -> dict[str, Tensor]:
        """The outputs that the array gives, by name.

        Raises RequestError for an array without a batch, too many items, and an answer that would be too large, and
        LatentError or ImageError where it has not four axes. The runtime checks everything else when it is its turn.
        """
        if array.ndim == 3:
            raise bad(
                f"{self.interface.input} has shape {array.shape}, without a batch; send one item as {(1, *array.shape)}"
            )
        if array.ndim != 4:
            self._check(array)
        if len(array) > settings.max_batch:
            raise bad(
                f"the batch has {len(array)} items; this server takes at most {settings.max_batch} (--max-batch). Send "
                "them in several requests"
            )
        height, width = image_size(self.vae, self.part, array)
        gives = self.interface.gives(len(array), height, width)
        size = sum(gives[name].size for name in outputs)
        if size > settings.max_body:
            raise too_large(
                f"the answer would have {size:,} bytes for {len(array)} of {height}x{width} pixels (height x width); "
                f"this server gives at most {settings.max_body:,} (--max-body). Ask for fewer outputs or items"
            )
        return {name: gives[name] for name in outputs}

    def _check(self, array: NDArray[Any]) -> None:
        """Raise what the runtime says of an array that it does not take."""
        if self.part == "decoder":
            check_latent(array, self.vae.latent)
        else:
            check_image(array, self.vae.latent.image_channels)


def image_size(vae: VAE, part: Part, array: NDArray[Any]) -> tuple[int, int]:
    """Height and width in pixels of the images that ``array`` has, or whose latents. array: has four axes."""
    axes = spatial_axes(vae.manifest.interface(part).input if part == "decoder" else _form(array.dtype))
    factor = vae.latent.factor if part == "decoder" else 1
    height, width = (array.shape[axis] * factor for axis in axes)
    return height, width


def _form(dtype: np.dtype[Any]) -> str:
    return "image_u8" if dtype == np.uint8 else "image"


def make_models(vaes: Mapping[str, VAE], settings: Settings, metrics: Metrics) -> dict[str, Model]:
    """Both halves of each VAE by the name of the model. A VAE's halves share one line."""
    models = {}
    for name, vae in vaes.items():

        def told(part: Part, items: int, requests: int, seconds: float, vae_name: str = name) -> None:
            model = model_name(vae_name, part)
            metrics.items.observe(items, model)
            metrics.joined.observe(requests, model)
            metrics.computed.observe(seconds, model)

        def is_large(part: Part, array: NDArray[Any], vae: VAE = vae) -> bool:
            return not vae.on_gpu and len(array) * math.prod(image_size(vae, part, array)) >= LARGE

        joins = vae.on_gpu if settings.joins is None else settings.joins
        line = Line(
            vae.compute,
            calls=CALLS_ON_GPU if vae.on_gpu else max(CALLS_ON_CPU, usable_cores()),
            most=settings.max_batch if joins else 1,
            delay=settings.max_delay,
            longest=settings.max_queue,
            is_large=is_large,
            large_calls=max(1, usable_cores() // min(vae.threads, CORES_OF_A_LARGE_CALL)),
            told=told,
        )
        for part in PARTS:
            model = Model(name, vae, part, line)
            models[model.name] = model
    return models

"""Match the tensors of a weights file with an architecture, and copy them out of the file."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vaedeploy.errors import WeightsError
from vaedeploy.source.autoencoder_kl.config import Architecture
from vaedeploy.source.autoencoder_kl.names import comparable_shape, diffusers_name
from vaedeploy.source.checkpoint import count_of, listed
from vaedeploy.source.stored import Stored
from vaedeploy.system.progress import Progress, silent

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Fit:
    """How well a file's tensors match those of an architecture.

    found: number of the architecture's tensors that the file has. sources: diffusers' name -> name in the file.
    missing: tensors that the file lacks. surplus: tensors that the architecture does not have, by their name in the
    file. misshapen: name in the file -> both shapes, in words.
    """

    found: int
    sources: Mapping[str, str]
    missing: Collection[str]
    surplus: Collection[str]
    misshapen: Mapping[str, str]

    @property
    def faults(self) -> int:
        return len(self.missing) + len(self.surplus) + len(self.misshapen)

    def complaint(self) -> str:
        """All faults in words, for a message."""
        shapes = [f"{name}: {shapes}" for name, shapes in self.misshapen.items()]
        parts = (("missing", self.missing), ("surplus", self.surplus), ("of the wrong shape", shapes))
        return "; ".join(f"{count_of(names)} {fault} ({listed(names)})" for fault, names in parts if names)


def fit(tensors: Mapping[str, Stored], architecture: Architecture) -> Fit:
    """Match a VAE's tensors, under diffusers' or CompVis' names, with those of ``architecture``.

    Raises WeightsError for an architecture that cannot be built.
    """
    from vaedeploy.source.autoencoder_kl.modules import tensor_shapes

    expected = tensor_shapes(architecture)
    blocks = len(architecture.block_out_channels)
    sources = {diffusers_name(name, blocks): name for name in tensors}
    used = {sources[name] for name in sources if name in expected}
    given = {name: tensors[sources[name]].shape for name in expected if name in sources}
    shapes = {name: comparable_shape(shape, expected[name]) for name, shape in given.items()}
    return Fit(
        found=len(shapes),
        sources=sources,
        missing=[name for name in expected if name not in sources],
        surplus=[name for name in tensors if name not in used],
        misshapen={
            sources[name]: f"expected {expected[name]}, given {given[name]}"
            for name, shape in shapes.items()
            if shape != expected[name]
        },
    )


def load(
    tensors: Mapping[str, Stored], matched: Fit, architecture: Architecture, where: str, progress: Progress = silent
) -> dict[str, Tensor]:
    """Copy a file's tensors as float32, under diffusers' names and in diffusers' shapes.

    matched: the ``Fit`` of ``tensors``, without faults. where: what messages call the file.

    Raises WeightsError for tensors that are not floating point, or that hold NaN or infinity.
    """
    import torch

    from vaedeploy.source.autoencoder_kl.modules import tensor_shapes

    expected = tensor_shapes(architecture)
    loaded, integers, broken = {}, [], []
    for done, (name, shape) in enumerate(expected.items()):
        progress("Loading weights", float(done), float(len(expected)))
        tensor = tensors[matched.sources[name]].read()
        if not tensor.is_floating_point():
            integers.append(f"{matched.sources[name]} {tensor.dtype}")
            continue
        # A copy, because a view maps the file, which may change or be deleted while the model is in use.
        loaded[name] = tensor.reshape(shape).to(torch.float32, copy=True).contiguous()
        # NumPy checks in this thread. torch wakes its thread pool for each tensor, which takes longer than the check.
        if not np.isfinite(loaded[name].numpy()).all():
            broken.append(matched.sources[name])
    progress("Loading weights", float(len(expected)), float(len(expected)))
    if integers:
        raise WeightsError(
            f"{where} holds {count_of(integers)} not floating point: {listed(integers)}. "
            "Give weights in float32, float16 or bfloat16; quantised ones cannot be loaded"
        )
    if broken:
        raise WeightsError(
            f"{where} holds {count_of(broken)} with NaN or infinity: {listed(broken)}. "
            "Such a VAE gives black images; get the weights again, or in a higher precision"
        )
    return loaded

"""Match the tensors of a weights file with an architecture, and copy them out of the file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vaedeploy.errors import WeightsError
from vaedeploy.source.checkpoint import count_of, listed
from vaedeploy.source.families import family_of
from vaedeploy.source.family import Architecture
from vaedeploy.source.stored import Stored
from vaedeploy.system.progress import Progress, silent

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Source:
    """Where a tensor of an architecture is in a file.

    name: the tensor's name in the file. tensor: it, or the part of it that is meant.
    """

    name: str
    tensor: Stored


@dataclass(frozen=True)
class Fit:
    """How well a file's tensors match those of an architecture.

    found: number of the architecture's tensors that the file has. sources: diffusers' name -> where it is in the file.
    missing: tensors that the file lacks. surplus: tensors that the architecture does not have, by their name in the
    file. misshapen: name in the file -> both shapes, in words.
    """

    found: int
    sources: Mapping[str, Source]
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
    """Match a VAE's tensors, under diffusers' names or others that the family knows, with those of ``architecture``.

    Raises WeightsError for an architecture that cannot be built.
    """
    from vaedeploy.source.network import counters, tensor_shapes

    family, expected = family_of(architecture), tensor_shapes(architecture)
    sources = {
        theirs: Source(name, part)
        for name, tensor in tensors.items()
        for theirs, part in _parts(tensor, family.diffusers_name(name, architecture)).items()
    }
    used = {sources[name].name for name in sources if name in expected or name in counters(architecture)}
    given = {name: sources[name].tensor.shape for name in expected if name in sources}
    shapes = {name: comparable_shape(shape, expected[name]) for name, shape in given.items()}
    return Fit(
        found=len(shapes),
        sources=sources,
        missing=[name for name in expected if name not in sources and name not in family.contract_tensors],
        surplus=[name for name in tensors if name not in used],
        misshapen={
            sources[name].name: f"expected {expected[name]}, given {given[name]}"
            for name, shape in shapes.items()
            if shape != expected[name]
        },
    )


def _parts(tensor: Stored, names: str | tuple[str, ...]) -> dict[str, Stored]:
    """``tensor`` by its name in diffusers; for several names, the equal parts of its first axis by theirs."""
    if isinstance(names, str):
        return {names: tensor}
    if not tensor.shape or tensor.shape[0] % len(names):
        # It fits no architecture; messages show the shape that it has.
        return dict.fromkeys(names, tensor)
    length, *others = tensor.shape
    size = length // len(names)
    return {name: Stored((size, *others), _part(tensor, n * size, size)) for n, name in enumerate(names)}


def _part(tensor: Stored, start: int, size: int) -> Callable[[], Tensor]:
    return lambda: tensor.read()[start : start + size]


def load(
    matched: Fit,
    shapes: Mapping[str, tuple[int, ...]],
    where: str,
    progress: Progress = silent,
) -> dict[str, Tensor]:
    """Copy a file's tensors as float32, under diffusers' names and in diffusers' shapes.

    matched: a ``Fit`` without faults. shapes: diffusers' names of the tensors to copy -> their shapes.
    where: what messages call the file.

    Raises WeightsError for tensors that are not floating point, or that hold NaN or infinity.
    """
    import torch

    loaded, integers, broken = {}, [], []
    for done, (name, shape) in enumerate(shapes.items()):
        progress("Loading weights", float(done), float(len(shapes)))
        source = matched.sources[name]
        tensor = source.tensor.read()
        if not tensor.is_floating_point():
            integers.append(f"{source.name} {tensor.dtype}")
            continue
        # A copy, because a view maps the file, which may change or be deleted while the model is in use.
        loaded[name] = tensor.reshape(shape).to(torch.float32, copy=True).contiguous()
        # NumPy checks in this thread. torch wakes its thread pool for each tensor, which takes longer than the check.
        if not np.isfinite(loaded[name].numpy()).all():
            broken.append(source.name)
    progress("Loading weights", float(len(shapes)), float(len(shapes)))
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


def comparable_shape(shape: Sequence[int], expected: tuple[int, ...]) -> tuple[int, ...]:
    """A tensor's shape without axes of length 1 at its end, down to the number of axes of ``expected``.

    Attentions are matrices today, but were 1x1 convolutions in old checkpoints.
    """
    shape = tuple(shape)
    while len(shape) > len(expected) and shape[-1] == 1:
        shape = shape[:-1]
    return shape

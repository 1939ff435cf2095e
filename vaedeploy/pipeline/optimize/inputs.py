"""Inputs for any ONNX graph: sizes for its symbolic dimensions, given or typical, and arrays to run it on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
import safetensors
from numpy.typing import NDArray

from vaedeploy.errors import InputError
from vaedeploy.graph.sizes import evaluate_expression, symbols_of
from vaedeploy.system.missing import missing
from vaedeploy.system.oserrors import reason
from vaedeploy.system.text import shown, whole_number
from vaedeploy.values.latent import RGB, RGBA

Feed = dict[str, NDArray[Any]]

Scale = Literal["typical", "small"]

PICTURE: dict[Scale, int] = {"typical": 512, "small": 64}
"""Height and width, in pixels, of an input that is an image."""

LATENT: dict[Scale, int] = {"typical": 64, "small": 8}
"""Height and width of any other input: an eighth of an image's."""


LARGEST = 2**31 - 1
"""The largest size that can be given for a dimension: more fits no memory, and ONNX cannot store its products."""

MOST_NUMBERS = 2**27
"""The most numbers of an input that is made up (in float32 it takes half a gigabyte, and its graph many times that)."""


@dataclass(frozen=True)
class Dimension:
    """One symbolic dimension of one input.

    symbols: the names, as ``--sizes`` takes them, from which its size is computed. expression: how it is computed; None
    where it is its only symbol, whose name was made up here because onnx_ir has none for it.
    """

    value: ir.Value
    axis: int
    symbols: tuple[str, ...]
    expression: ir.SymbolicDim | None

    def size(self, sizes: Mapping[str, int]) -> int:
        """The size for these sizes of the symbols. Raises InputError where it is not a whole number of 1 or more."""
        size = sizes[self.symbols[0]] if self.expression is None else evaluate_expression(self.expression, sizes)
        if size is None or size < 1:
            given = ", ".join(f"{name}={sizes[name]}" for name in self.symbols)
            raise InputError(
                f"dimension {self.axis} of input {self.value.name} is {self.expression}, which for {given} comes to "
                f"{'no whole number' if size is None else size}. Give other --sizes"
            )
        return size


def graph_inputs(model: ir.Model) -> list[ir.Value]:
    """The inputs that must be given, without weights that are listed as inputs."""
    return [value for value in model.graph.inputs if not value.is_initializer()]


def dimensions(model: ir.Model) -> Iterator[Dimension]:
    """The symbolic dimensions of the inputs. One without a name, or whose name is no expression, is its own only
    symbol.
    """
    for value in graph_inputs(model):
        for axis, dim in enumerate(value.shape or ()):
            if isinstance(dim, ir.SymbolicDim):
                try:
                    symbols = tuple(sorted(symbols_of(dim))) if dim.value else ()
                except ValueError:  # such as a name with a space in it
                    symbols = ()
                name = dim.value or f"{value.name}.{axis}"
                yield Dimension(value, axis, symbols or (name,), dim if symbols else None)


def parse_sizes(texts: Sequence[str]) -> dict[str, int]:
    """``NAME=NUMBER`` texts -> sizes. Raises InputError for another form and for a number below 1."""
    sizes: dict[str, int] = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        size = whole_number(number)
        if not name or not size:
            raise InputError(f"--sizes {shown(repr(text))} is not a size: give NAME=NUMBER, such as height=64")
        sizes[name] = size
    return sizes


def choose_sizes(model: ir.Model, given: Mapping[str, int], scale: Scale = "typical") -> dict[str, int]:
    """A size for each symbol: the one in ``given``, or else a usual one, which is batch 1, the height and width of an
    image or a latent, or the number of channels that the first convolution takes.

    Raises InputError where ``given`` names a dimension that no input has, or a size in it is no whole number from 1
    to ``LARGEST``.
    """
    for name, size in given.items():
        if not isinstance(size, int) or not 1 <= size <= LARGEST:
            raise InputError(f"sizes has {name}={size!r}; a size is a whole number from 1 to {LARGEST}")
    sizes: dict[str, int] = {}
    for dimension in dimensions(model):
        for symbol in dimension.symbols:
            sizes.setdefault(symbol, given.get(symbol, 0) or _usual(dimension, scale))
    if unknown := sorted(set(given) - set(sizes)):
        raise InputError(
            f"there is no dimension {unknown[0]!r}; the inputs' dimensions are {', '.join(sizes) or 'all fixed'}"
        )
    return sizes


def _usual(dimension: Dimension, scale: Scale) -> int:
    """The size that a dimension usually has, judged by its axis and the input's channels."""
    value, axis = dimension.value, dimension.axis
    assert value.shape is not None
    if axis == 0:
        return 1
    channels = value.shape[1] if len(value.shape) > 1 else None
    if isinstance(channels, ir.SymbolicDim):
        channels = _convolved_channels(value)
        # Where the last axis has the channels, this one is the height.
        if axis == 1 and len(value.shape) == 4 and channels is not None and channels != value.shape[-1]:
            return channels
    return (PICTURE if _is_image(value, channels, value.shape[-1]) else LATENT)[scale]


def _is_image(value: ir.Value, *channels: object) -> bool:
    """Whether an input is an image. Four channels may be RGBA or a latent: the name or the type tells which.

    channels: the sizes, where known, of the axes where an image has its channels.
    """
    called_image = (value.name or "").startswith("image") or value.dtype == ir.DataType.UINT8
    return RGB in channels or (RGBA in channels and called_image)


def _convolved_channels(value: ir.Value) -> int | None:
    """How many channels the first convolution downstream of ``value`` takes; None where there is none."""
    waiting, seen = [value], {value}
    while waiting:
        for node in waiting.pop(0).consumers():
            weight = node.inputs[1].shape if node.op_type == "Conv" and node.inputs[1] is not None else None
            if weight is not None and isinstance(weight[1], int):
                return weight[1] * node.attributes.get_int("group", 1)
            new = [output for output in node.outputs if output not in seen]
            waiting += new
            seen.update(new)
    return None


def fix_unnamed(model: ir.Model, sizes: Mapping[str, int]) -> tuple[ir.Model, dict[str, int]]:
    """A clone of ``model`` in which dimensions without a usable name have their sizes, and the sizes of all others."""
    clone = model.clone()
    named: set[str] = set()
    for dimension in list(dimensions(clone)):
        assert dimension.value.shape is not None
        if dimension.expression is None:
            dims = list(dimension.value.shape)
            dims[dimension.axis] = dimension.size(sizes)
            dimension.value.shape = ir.Shape(dims)
        else:
            named.update(dimension.symbols)
    return clone, {name: sizes[name] for name in named}


def random_feed(model: ir.Model, sizes: Mapping[str, int], seed: int = 0) -> Feed:
    """Random arrays for every input, by name, drawn from ``seed``.

    Floats are normally distributed, or uniform in [-1, 1] for an image; uint8 is
    uniform. Raises InputError for an input of unknown shape or of any other type.
    """
    draw = np.random.default_rng(seed)
    symbolic = {(d.value, d.axis): d.size(sizes) for d in dimensions(model)}
    feed: Feed = {}
    for value in graph_inputs(model):
        if value.shape is None or value.dtype is None:
            raise InputError(f"the shape of input {value.name} is not known")
        dims = [dim if isinstance(dim, int) else symbolic[value, axis] for axis, dim in enumerate(value.shape)]
        if min(dims, default=1) < 1 or math.prod(dims) > MOST_NUMBERS:
            raise InputError(f"input {value.name} takes {' x '.join(map(str, dims))} numbers, which are not made up")
        if value.dtype == ir.DataType.UINT8:
            feed[str(value.name)] = draw.integers(0, 256, dims, dtype=np.uint8)
        elif value.dtype.is_floating_point():
            image = len(dims) == 4 and _is_image(value, dims[1])
            numbers = draw.uniform(-1, 1, dims) if image else draw.standard_normal(dims)
            feed[str(value.name)] = numbers.astype(value.dtype.numpy())
        else:
            raise InputError(f"input {value.name} is {value.dtype.name}, for which there are no typical numbers")
    return feed


def read_feed(path: Path, model: ir.Model) -> Feed:
    """Arrays for every input, by name, from a safetensors file; floats are converted to the type that the graph takes.

    Raises InputError for a file that cannot be read, and for tensors that are missing, unknown, of another shape or
    kind, or that hold NaN or infinity.
    """
    inputs = {str(value.name): value for value in graph_inputs(model)}
    feed: Feed = {}
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            names = set(file.keys())
            if names != set(inputs):
                raise InputError(
                    f"{path} has the tensors {', '.join(sorted(names)) or 'none'}; "
                    f"the graph's inputs are {', '.join(inputs)}"
                )
            for name, value in inputs.items():
                feed[name] = _fitting(file.get_tensor(name), value, path)
    except FileNotFoundError as error:
        raise InputError(missing("file", path)) from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {reason(error)}") from error
    except (safetensors.SafetensorError, TypeError) as error:  # TypeError: a type that numpy does not have
        raise InputError(f"{path} is not a safetensors file that can be used: {error}") from error
    return feed


def _fitting(array: NDArray[Any], value: ir.Value, path: Path) -> NDArray[Any]:
    """``array``, converted to the type of the input ``value``. Raises InputError where it does not fit."""
    name, shape, dtype = value.name, value.shape, value.dtype
    if shape is not None:
        same_rank = len(shape) == array.ndim
        if not same_rank or any(isinstance(d, int) and d != n for d, n in zip(shape, array.shape, strict=True)):
            wanted = ", ".join(str(dim) if not isinstance(dim, ir.SymbolicDim) else dim.value or "?" for dim in shape)
            raise InputError(f"{path} has {name} of shape {array.shape}; the graph takes ({wanted})")
    if dtype is not None and array.dtype != dtype.numpy():
        if not dtype.is_floating_point() or array.dtype.kind != "f":
            raise InputError(f"{path} has {name} as {array.dtype}; the graph takes {dtype.name.lower()}")
        array = array.astype(dtype.numpy())
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(f"{path} has NaN or infinity in {name}")
    return array

"""The Open Inference Protocol (KServe v2) with its binary extension: bytes of requests and answers, and what they say.

A body is JSON, or JSON and then the bytes of tensors in their order, little endian and in C order; the header
``Inference-Header-Content-Length`` says how long the JSON is then.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from vaedeploy.serve.http import Answer, Piece
from vaedeploy.serve.models import Model
from vaedeploy.serve.refusals import bad, too_large
from vaedeploy.system.text import shown, whole_number
from vaedeploy.values.interface import Interface, Tensor

HEADER = "inference-header-content-length"

TYPES = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
"""The protocol's names of types that numpy has."""

NAMES = {dtype: name for name, dtype in TYPES.items()}

MOST_NUMBERS = 2**20
"""The most numbers of a tensor's data in JSON, such as those of a 512x512 image: reading them holds up everything else
in this process.
"""

MOST_JSON = 2**24
"""Bytes of JSON that are read at most."""

Side = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


class Parameters(msgspec.Struct, frozen=True):
    """The parameters of tensors and requests that are read; others are ignored, as the protocol allows."""

    binary_data_size: Annotated[int, msgspec.Meta(ge=0)] | None = None
    binary_data: bool | None = None
    binary_data_output: bool = False
    classification: int = 0
    shared_memory_region: str | None = None


class InputTensor(msgspec.Struct, frozen=True):
    name: str
    datatype: str
    shape: Annotated[list[Side], msgspec.Meta(max_length=8)]
    parameters: Parameters = Parameters()
    data: msgspec.Raw = msgspec.Raw()


class OutputTensor(msgspec.Struct, frozen=True):
    name: str
    parameters: Parameters = Parameters()


class Inference(msgspec.Struct, frozen=True):
    inputs: list[InputTensor]
    outputs: list[OutputTensor] = []
    id: str = ""
    parameters: Parameters = Parameters()


@dataclass(frozen=True)
class Asked:
    """What a request asks for. outputs: name -> whether it is sent as bytes, not in JSON. id: is sent back."""

    array: NDArray[Any]
    outputs: Mapping[str, bool]
    id: str


def json_length(header: str | None, size: int) -> int:
    """How many bytes of a body of ``size`` bytes are JSON. header: the value of ``HEADER``, if there is one."""
    if header is None:
        return size
    length = whole_number(header)
    if length is None:
        raise bad(f"Inference-Header-Content-Length is '{shown(header)}'; it must be the number of bytes of JSON")
    if length > size:
        raise bad(f"Inference-Header-Content-Length is {header}, but the whole body has {size} bytes")
    return length


def read_inference(body: bytearray, length: int, model: Model) -> Asked:
    """A body whose first ``length`` bytes are JSON, as a request to ``model``.

    Raises RequestError (400, 413), and ImageError or LatentError for a type that the VAE does not take.
    """
    if length > MOST_JSON:
        raise too_large(f"the JSON has {length:,} bytes; at most {MOST_JSON:,} are read. Send the tensor as bytes")
    inference = _decode(memoryview(body)[:length], Inference, "the request's JSON")
    if len(inference.inputs) != 1:
        raise bad(f"the request has {len(inference.inputs)} inputs; {model.name} takes one, {model.inputs[0]}")
    (tensor,) = inference.inputs
    if tensor.name not in model.inputs:
        raise bad(f"there is no input '{shown(tensor.name)}'; {model.name} takes {model.inputs[0]}")
    outputs = _outputs(inference, model.interface)
    return Asked(_array(tensor, memoryview(body)[length:], model), outputs, inference.id)


def _decode(text: bytes | memoryview | msgspec.Raw, kind: Any, what: str) -> Any:
    try:
        return msgspec.json.decode(text, type=kind)
    except RecursionError:
        raise bad(f"{what} is nested too deeply") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise bad(f"{what} is not valid: {shown(str(error))}") from None


def _outputs(inference: Inference, interface: Interface) -> dict[str, bool]:
    """The wanted outputs, in the order of the request; all of them where it names none."""
    in_bytes = inference.parameters.binary_data_output
    outputs: dict[str, bool] = {}
    for output in inference.outputs:
        given = output.parameters
        if output.name not in interface.outputs:
            raise bad(f"there is no output '{shown(output.name)}'; there is: {', '.join(interface.outputs)}")
        if output.name in outputs:
            raise bad(f"the output {output.name} is asked for twice")
        if given.classification or given.shared_memory_region is not None:
            raise bad(f"the output {output.name} is sent as it is: without classification and shared memory")
        outputs[output.name] = in_bytes if given.binary_data is None else given.binary_data
    return outputs or dict.fromkeys(interface.outputs, in_bytes)


def _array(tensor: InputTensor, data: memoryview, model: Model) -> NDArray[Any]:
    """The array of a tensor. data: its bytes, all of them, where it is sent as bytes."""
    name, shape = tensor.name, tuple(tensor.shape)
    dtype = TYPES.get(tensor.datatype)
    if dtype is None:
        raise bad(f"{name} is of type '{shown(tensor.datatype)}'; it must be one of {', '.join(TYPES)}")
    if tensor.parameters.shared_memory_region is not None:
        raise bad(f"{name} is in shared memory, which this server does not read; send it in the body")
    model.check_type(dtype)
    count, stated = math.prod(shape), tensor.parameters.binary_data_size
    if not count:
        raise bad(f"{name} has no elements: its shape is {shape}")
    if stated is None:
        if data:
            raise bad(f"{len(data)} bytes follow the JSON, but {name} has no binary_data_size")
        return _numbers(tensor, count, dtype).reshape(shape)
    if tensor.data:
        raise bad(f"{name} has both data in JSON and a binary_data_size; send one of them")
    if stated != len(data):
        raise bad(f"binary_data_size of {name} is {stated}, but {len(data)} bytes follow the JSON")
    if stated != count * dtype.itemsize:
        raise bad(
            f"{name} of shape {list(shape)} and type {tensor.datatype} has {count * dtype.itemsize} bytes, and "
            f"binary_data_size is {stated}"
        )
    # The JSON before it can have any length, and backends read numbers at their alignment.
    return np.require(np.frombuffer(data, dtype).reshape(shape), requirements="A")


def _numbers(tensor: InputTensor, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The numbers of a tensor's data in JSON, a flat list or one nested as the shape says."""
    if not tensor.data:
        raise bad(f"{tensor.name} has neither data nor a binary_data_size")
    text = bytes(tensor.data)
    # Commas are counted first: lists of Python's numbers take ten times the memory of their text.
    if count > MOST_NUMBERS or text.count(b",") >= MOST_NUMBERS:
        raise too_large(f"{tensor.name} has more than {MOST_NUMBERS:,} numbers in JSON; send it as bytes")
    number: Any = Annotated[int, msgspec.Meta(ge=0, le=255)] if dtype == np.uint8 else float
    kind: Any = list[number]
    if text[1:].lstrip().startswith(b"["):
        for _ in tensor.shape[1:]:
            kind = list[kind]
    try:
        with np.errstate(over="ignore"):  # infinity, which the runtime refuses
            array = np.array(_decode(text, kind, f"data of {tensor.name}"), dtype)
    except ValueError:  # rows of different lengths
        raise bad(f"data of {tensor.name} is not nested as its shape {tensor.shape} says") from None
    flat = array.ndim == 1 and len(tensor.shape) != 1
    if array.size != count or not (flat or array.shape == tuple(tensor.shape)):
        raise bad(f"data of {tensor.name} has {array.size} numbers, and its shape {tensor.shape} has {count}")
    return array


def write_inference(model: Model, asked: Asked, arrays: Mapping[str, NDArray[Any]]) -> Answer:
    """The answer to a request: its outputs, in JSON or as bytes. In JSON, NaN and infinity are null."""
    tensors: list[dict[str, Any]] = []
    pieces: list[Piece] = []
    for name, in_bytes in asked.outputs.items():
        array = np.ascontiguousarray(arrays[name])
        tensor: dict[str, Any] = {"name": name, "datatype": NAMES[array.dtype], "shape": array.shape}
        if in_bytes:
            pieces.append(array.reshape(-1).view(np.uint8).data)
            tensor["parameters"] = {"binary_data_size": array.nbytes}
        else:
            tensor["data"] = array.reshape(-1).tolist()
        tensors.append(tensor)
    told = {"model_name": model.name, "model_version": VERSION, "outputs": tensors}
    text = msgspec.json.encode(told | ({"id": asked.id} if asked.id else {}))
    if not pieces:
        return Answer([text])
    return Answer(
        [text, *pieces], "application/octet-stream", headers={"Inference-Header-Content-Length": str(len(text))}
    )


VERSION = "1"
"""The version of every model."""


def check_numbers(asked: Asked, gives: Mapping[str, Tensor]) -> None:
    """Raise RequestError (413) for an output that would be too large in JSON. gives: the outputs to come."""
    for name, tensor in gives.items():
        count = math.prod(tensor.shape)
        if not asked.outputs[name] and count > MOST_NUMBERS:
            raise too_large(
                f"the output {name} would have {count:,} numbers, and {MOST_NUMBERS:,} are sent in JSON at most; ask "
                "for it with binary_data"
            )


def metadata(model: Model) -> dict[str, object]:
    """What ``/v2/models/NAME`` says."""
    interface: Interface = model.interface
    factor = interface.latent.factor
    takes, gives = interface.takes(1, factor, factor), interface.gives(1, factor, factor)

    def told(names: Sequence[str]) -> list[dict[str, object]]:
        tensors = {interface.input: takes, **gives}
        return [
            {"name": name, "datatype": NAMES[tensors[name].dtype], "shape": _open_shape(name, tensors[name].shape)}
            for name in names
        ]

    return {
        "name": model.name,
        "versions": [VERSION],
        "platform": "vaedeploy",
        "inputs": told([interface.input]),
        "outputs": told(interface.outputs),
    }


def _open_shape(name: str, shape: tuple[int, ...]) -> list[int]:
    """A shape with -1, which stands for any, as batch, height and width."""
    channels = {"finite": None, "image_u8": 3}.get(name, 1)
    return [side if axis == channels else -1 for axis, side in enumerate(shape)]

"""The bytes of a safetensors file, equal on every run for equal arrays and metadata, and its metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

ALIGNMENT = 8
"""Bytes. The data of a safetensors file begins at a multiple of this, as the safetensors library writes it."""


def safetensors_bytes(
    arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str], *, bfloat16: bool = False
) -> bytes:
    """The content of a safetensors file with ``arrays`` and ``metadata``, both by name.

    bfloat16: uint16 arrays are the bits of bfloat16 numbers, which numpy does not know (see ``bfloat16_bits``).

    The safetensors library sorts tensors, but writes metadata in an order that differs from run to run. So this
    function puts the metadata into the header itself, sorted by name.
    """
    # The library writes an array's memory as it is, and ignores strides.
    saved = safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    end = 8 + int.from_bytes(saved[:8], "little")
    tensors = json.loads(saved[8:end])
    for tensor in tensors.values():
        if bfloat16 and tensor["dtype"] == "U16":
            tensor["dtype"] = "BF16"
    entries = {"__metadata__": dict(sorted(metadata.items()))} | tensors
    header = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    header += b" " * (-len(header) % ALIGNMENT)
    return len(header).to_bytes(8, "little") + header + saved[end:]


def bfloat16_bits(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of finite float32 numbers rounded to bfloat16, to nearest, ties to even."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded: NDArray[np.uint16] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return rounded


def from_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """bfloat16 numbers, given as bits, as float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def safetensors_metadata(data: bytes) -> dict[str, str]:
    """The metadata of a safetensors file with this content, which the safetensors library has read without error."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    metadata: dict[str, str] = header.get("__metadata__") or {}
    return metadata

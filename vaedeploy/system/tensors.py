"""Arrays -> the bytes of a safetensors file, the same for the same content."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

ALIGNMENT = 8
"""Bytes: the data begins at a multiple of it, as safetensors itself has it."""


def safetensors_bytes(arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file with ``arrays`` by name, and ``metadata``.

    safetensors orders tensors itself, but writes metadata in an order that differs from run to run. So that is put into
    the header here, by name.
    """
    # It writes an array's memory as it lies, whatever its strides say.
    saved = safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    end = 8 + int.from_bytes(saved[:8], "little")
    told = {"__metadata__": dict(sorted(metadata.items()))} | json.loads(saved[8:end])
    header = json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode()
    header += b" " * (-len(header) % ALIGNMENT)
    return len(header).to_bytes(8, "little") + header + saved[end:]

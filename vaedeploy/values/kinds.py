"""The words that all stages share: halves, forms, precisions, backends."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Part = Literal["encoder", "decoder"]

PARTS: tuple[Part, ...] = ("encoder", "decoder")

Form = Literal["portable", "onnxruntime", "tensorrt"]

ImageInput = Literal["float", "uint8"]

Precision = Literal["fp32", "fp16", "bf16"]

Backend = Literal["tensorrt", "tensorrt-rtx"]
"""What builds and runs engines."""

Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]

Target = Literal["onnxruntime", "tensorrt"]

"""The literals that every stage shares: halves, forms, precisions and backends."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Part = Literal["encoder", "decoder"]
"""One half of a VAE."""

PARTS: tuple[Part, ...] = ("encoder", "decoder")

Form = Literal["portable", "onnxruntime", "onnxruntime-cuda", "openvino", "tensorrt"]
"""A form of a part's graph in a bundle; ``docs/bundle-format.md`` describes each."""

ImageInput = Literal["float", "uint8"]
"""What the encoder takes: float32 (B, N, H, W) in [-1, 1], or uint8 (B, H, W, N), of N = ``image_channels``."""

Precision = Literal["fp32", "fp16", "bf16"]

Backend = Literal["tensorrt", "tensorrt-rtx"]
"""The library that builds and runs engines."""

ComputeCapability = Annotated[str, msgspec.Meta(pattern=r"^[1-9][0-9]*\.[0-9]\Z")]
"""A GPU's compute capability, such as "8.9"."""

Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]

Target = Literal["onnxruntime", "onnxruntime-cuda", "openvino", "tensorrt"]
"""What a graph is rewritten for: any provider of ONNX Runtime, its CUDA provider only, OpenVINO or TensorRT."""

"""Names and forms of the graphs in a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vaedeploy.values.kinds import PARTS, Form, Part, Precision

if TYPE_CHECKING:
    from vaedeploy.values.kinds import Target


SUFFIXES: Mapping[Form, str] = {
    "portable": ".onnx",
    "onnxruntime": ".ort.onnx",
    "onnxruntime-cuda": ".cuda.onnx",
    "openvino": ".ov.onnx",
    "tensorrt": ".trt.onnx",
}
"""Form -> the suffix of its file name."""

FORMS: Mapping[Precision, Mapping[Target, Precision]] = {
    "fp32": {"onnxruntime": "fp32"},
    "fp16": {"onnxruntime": "fp16"},
    "bf16": {"onnxruntime": "fp32", "tensorrt": "bf16"},
}
"""Precision of a bundle -> each form that it always has beside the portable one -> that form's precision.

ONNX Runtime has no bfloat16 convolution, so its form of a bf16 bundle stays in float32.
"""


EXTRA_FORMS: Mapping[Target, Precision] = {"onnxruntime-cuda": "fp16", "openvino": "fp32"}
"""Each form that a bundle has only on request -> its precision, which must be the bundle's too unless it is fp32.
Making a bundle verifies none of them; ``verify --backend`` does.
"""


def file_name(part: Part, form: Form) -> str:
    """The path of a graph in a bundle, such as ``decoder.ort.onnx``."""
    return f"{part}{SUFFIXES[form]}"


def graph_names(folder: Path) -> dict[Part, dict[Form, str]]:
    """The value of ``Manifest.graphs`` for the graphs that are in ``folder``."""
    return {
        part: {form: name for form in SUFFIXES if (folder / (name := file_name(part, form))).exists()} for part in PARTS
    }

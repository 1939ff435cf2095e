"""The names of a bundle's graphs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vaedeploy.values.kinds import PARTS, Form, Part, Precision

if TYPE_CHECKING:
    from vaedeploy.values.kinds import Target


SUFFIXES: Mapping[Form, str] = {"portable": ".onnx", "onnxruntime": ".ort.onnx", "tensorrt": ".trt.onnx"}

FORMS: Mapping[Precision, Mapping[Target, Precision]] = {
    "fp32": {"onnxruntime": "fp32"},
    "fp16": {"onnxruntime": "fp16"},
    "bf16": {"onnxruntime": "fp32", "tensorrt": "bf16"},
}
"""A bundle's precision -> the forms that it has beside the portable one, and theirs. ONNX Runtime has no bfloat16
convolution, so its form stays in float32.
"""


def file_name(part: Part, form: Form) -> str:
    """Where a graph lies in a bundle."""
    return f"{part}{SUFFIXES[form]}"


def graph_names(folder: Path) -> dict[Part, dict[Form, str]]:
    """The manifest's table of the graphs that are in ``folder``."""
    return {
        part: {form: name for form in SUFFIXES if (folder / (name := file_name(part, form))).exists()} for part in PARTS
    }

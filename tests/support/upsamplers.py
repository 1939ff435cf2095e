"""A small decoder's graph, as somebody else exported it, and what is compared of it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import safetensors.numpy
from onnx import helper, numpy_helper

LATENT = ("batch", 4, "height", "width")


def upsampler(
    path: Path,
    *,
    gain: float = 1.0,
    last: float = 1.0,
    shape=LATENT,
    opset: int = 20,
    dtype=np.float32,
    extra=(),
    kept: int = 64,
) -> Path:
    """latent (B, 4, h, w) -> convolution -> nearest x2 -> convolution -> image (B, 3, 2h, 2w).

    gain, last: factors of the first and of the second convolution's weights. extra: nodes from ``plain`` to ``image``.
    kept: weights of fewer bytes are in the file itself, the others in its .data.
    """
    random = np.random.default_rng(0)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    weights = {
        "first": (random.standard_normal((8, 4, 3, 3)) * 0.2 * gain).astype(dtype),
        "second": (random.standard_normal((3, 8, 3, 3)) * 0.2 * last).astype(dtype),
        "scales": np.array([1, 1, 2, 2], np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["latent", "first"], ["inner"], "conv_in", pads=[1, 1, 1, 1]),
        helper.make_node(
            "Resize",
            ["inner", "", "scales"],
            ["large"],
            "resize",
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        ),
        helper.make_node("Conv", ["large", "second"], ["plain" if extra else "image"], "conv_out", pads=[1, 1, 1, 1]),
        *extra,
    ]
    graph = helper.make_graph(
        nodes,
        "upsampler",
        [helper.make_tensor_value_info("latent", kind, shape)],
        [helper.make_tensor_value_info("image", kind, [shape[0], 3, None, None])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.example", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=9)
    onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=kept)
    return path


def latents(path: Path, **tensors) -> Path:
    random = np.random.default_rng(1)
    given = tensors or {"latent": random.standard_normal((1, 4, 6, 10)).astype(np.float32)}
    safetensors.numpy.save_file(given, path)
    return path


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def interface(path: Path) -> list[tuple]:
    model = onnx.load(path, load_external_data=False)
    return [
        (value.name, value.type.SerializeToString(deterministic=True))
        for value in (*model.graph.input, *model.graph.output)
    ]

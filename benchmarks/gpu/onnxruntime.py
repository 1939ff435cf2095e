"""ONNX Runtime in the GPU benchmark: graphs on PyTorch's memory and stream."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from benchmarks.gpu.measuring import DEVICE, PROVIDER, Run, used_gb
from vaedeploy.graph.graph import Graph, load_graph, save_graph
from vaedeploy.graph.trace import trace_graph
from vaedeploy.rewrite.normalization import split_means
from vaedeploy.rewrite.precision import lower_precision
from vaedeploy.rewrite.upsample import fold_upsampling
from vaedeploy.values.reference import Reference

FP16_FORMS = {"fp16, plain": (), "fp16, rewritten": ("two-stage", "convolutions")}


class Session:
    """A graph on ONNX Runtime, on PyTorch's stream and in PyTorch's memory: nothing is copied."""

    def __init__(self, path: Path, x: Tensor, shape: tuple[int, ...], **options: str) -> None:
        quiet = onnxruntime.SessionOptions()
        quiet.log_severity_level = 3
        if DEVICE == "cuda":
            options |= {"user_compute_stream": str(torch.cuda.current_stream().cuda_stream)}
            options |= {"cudnn_conv_algo_search": "EXHAUSTIVE"}
        providers = [(PROVIDER, options)] + ([("CPUExecutionProvider", {})] if DEVICE == "cuda" else [])
        self.session = onnxruntime.InferenceSession(path, quiet, providers=providers)
        if PROVIDER not in self.session.get_providers():
            raise RuntimeError("ONNX Runtime fell back to the CPU")
        self.x, self.result = x.contiguous(), torch.empty(shape, device=DEVICE)
        self.binding = self.session.io_binding()
        given, found = self.session.get_inputs()[0].name, self.session.get_outputs()[0].name
        self.binding.bind_input(given, DEVICE, 0, np.float32, tuple(x.shape), self.x.data_ptr())
        self.binding.bind_output(found, DEVICE, 0, np.float32, shape, self.result.data_ptr())

    def __call__(self) -> Tensor:
        self.session.run_with_iobinding(self.binding)
        return self.result


def write_forms(reference: Reference, folder: Path) -> dict[str, dict[str, Path]]:
    """Write the ONNX forms of both halves and return {part: {name: path}}."""
    forms: dict[str, dict[str, Path]] = {"encoder": {}, "decoder": {}}
    for part, paths in forms.items():
        plain = folder / f"{part}.onnx"
        save_graph(trace_graph(reference, part), plain)
        for name, steps in FP16_FORMS.items():
            graph = rewritten(load_graph(plain, part), steps)
            lower_precision(graph.model, "fp16")
            paths[name] = folder / f"{part}.{'.'.join(('fp16', *steps))}.onnx"
            save_graph(graph, paths[name])
    return forms


def rewritten(graph: Graph, steps: tuple[str, ...]) -> Graph:
    for step in steps:
        if step == "two-stage":
            split_means(graph.model)
        else:
            fold_upsampling(graph.model, step)  # an encoder has nothing to fold
    return graph


def sessions(
    paths: dict[str, Path], x: Tensor, shape: tuple[int, ...], memory: dict[str, float | None]
) -> tuple[dict[str, Run], dict[str, str]]:
    """({name: call}, {name: why it failed}). memory: receives the GB that each session holds after a call."""
    calls: dict[str, Run] = {}
    failed: dict[str, str] = {}
    for name, path in paths.items():
        before = used_gb()
        try:
            calls[f"onnxruntime {name}"] = call = Session(path, x, shape)
            call()
            memory[f"onnxruntime {name}"] = used_gb() - before
        except Exception as error:  # a failure is a result too
            failed[f"onnxruntime {name}"] = str(error)[:400]
            calls.pop(f"onnxruntime {name}", None)
    return calls, failed

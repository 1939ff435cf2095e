"""ONNX Runtime in the GPU benchmark: graphs on PyTorch's memory and stream."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from benchmarks.gpu.measuring import DEVICE, PROVIDER, Run, used_gb
from vaedeploy.graph.graph import load_graph, save_form, save_graph
from vaedeploy.graph.trace import trace_graph
from vaedeploy.rewrite import rewrite_graph
from vaedeploy.runtime.onnxruntime_cuda import FUSED_OPTIONS
from vaedeploy.values.kinds import Target
from vaedeploy.values.reference import Reference

FUSED = "fp16, fused"

FP16_FORMS: dict[str, tuple[Target, bool]] = {
    "fp16, plain": ("onnxruntime", False),
    "fp16, rewritten": ("onnxruntime", True),
    FUSED: ("onnxruntime-cuda", True),
}
"""Name -> the target of the rewrites, and whether more is done than lowering the precision."""


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
        graph = load_graph(plain, part)
        for name, (target, rules) in FP16_FORMS.items():
            paths[name] = form_path(folder, part, name)
            save_form(rewrite_graph(graph, target, "fp16", rules=rules).graph, paths[name], shared=False)
    return forms


def form_path(folder: Path, part: str, name: str) -> Path:
    return folder / f"{part}.{name.replace(', ', '.')}.onnx"


def sessions(
    paths: dict[str, Path], x: Tensor, shape: tuple[int, ...], memory: dict[str, float | None]
) -> tuple[dict[str, Run], dict[str, str]]:
    """({name: call}, {name: why it failed}). memory: receives the GB that each session holds after a call."""
    calls: dict[str, Run] = {}
    failed: dict[str, str] = {}
    for name, path in paths.items():
        before = used_gb()
        try:
            options = FUSED_OPTIONS if name == FUSED else {}
            calls[f"onnxruntime {name}"] = call = Session(path, x, shape, **options)
            call()
            memory[f"onnxruntime {name}"] = used_gb() - before
        except Exception as error:  # a failure is a result too
            failed[f"onnxruntime {name}"] = str(error)[:400]
            calls.pop(f"onnxruntime {name}", None)
    return calls, failed

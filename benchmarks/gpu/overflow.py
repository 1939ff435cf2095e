"""Half precision on a VAE whose residual stream was inflated, without and with the rescale rule."""

from __future__ import annotations

import copy
import gc
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.measuring import DEVICE, Run, errors
from benchmarks.gpu.onnxruntime import Session
from benchmarks.gpu.pytorch import Half, eager, exact, inputs
from vaedeploy.errors import InputError
from vaedeploy.graph.graph import load_graph, save_graph
from vaedeploy.graph.trace import trace_graph
from vaedeploy.numerics.maxima import measure_maxima
from vaedeploy.rewrite.precision import lower_precision
from vaedeploy.rewrite.rescale import rescale
from vaedeploy.values.reference import Reference

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))
from vaedeploy.testing.inflation import INFLATIONS, inflate


def overflow(reference: Reference, folder: Path) -> list[dict[str, Any]]:
    """Run the VAE as it is and inflated, at 512x512 in fp16: eager, only lowered, and rescaled before it is lowered."""
    rows = []
    x = inputs(reference, 512 if DEVICE == "cuda" else 64, 1)
    expected = {p: exact(reference, p, x[p]) for p in x}
    for inflation, (streams, inner) in {"as it is": ([1.0], [1.0]), **INFLATIONS}.items():
        vae = copy.deepcopy(reference)
        for part in ("encoder", "decoder"):
            inflate(getattr(vae, part), itertools.cycle(streams), itertools.cycle(inner))
            plain = folder / "inflated.onnx"
            save_graph(trace_graph(vae, part), plain)
            feed = {load_graph(plain, part).model.graph.inputs[0].name: x[part].cpu().numpy()}
            started = time.perf_counter()
            maxima = measure_maxima(plain, [feed])
            measured = time.perf_counter() - started
            row = {"vae": inflation, "part": part, "largest activation": max(maxima.values())}
            row["calibration s"] = measured
            runs: dict[str, Run] = {
                "eager fp16": eager(Half(vae, part, torch.float16, torch.contiguous_format), x[part])
            }
            for name in ("lowered", "rescaled, lowered"):
                graph = load_graph(plain, part)
                keep: Any = ()
                if name != "lowered":
                    started = time.perf_counter()
                    result = rescale(graph.model, maxima)
                    row["rescale s"] = time.perf_counter() - started
                    keep = result.keep_fp32
                    row |= {"kept in fp32": len(keep), "components scaled": result.outcome.matches}
                try:
                    lower_precision(graph.model, "fp16", keep_fp32=keep)
                except InputError as error:  # a weight exceeds the range of fp16
                    row[f"{name}: refused"] = str(error)[:300]
                    continue
                path = folder / f"inflated.{name.replace(', ', '.')}.onnx"
                save_graph(graph, path)
                runs[f"onnxruntime fp16, {name}"] = Session(path, x[part], tuple(expected[part].shape))
            for name, call in runs.items():
                row[name] = errors(call(), expected[part])
            rows.append(row)
            print(json.dumps(row), flush=True)
            del runs
            gc.collect()
    return rows

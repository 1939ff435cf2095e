"""Count what rows of a picture split over several devices would move, from the graph alone. Nothing is run.

    python benchmarks/ranks.py [--sizes 4096 ...] [--ranks 2 4 8] [--json FILE]

Of the decoder of the SD VAE (mse840k, seeded weights) in fp16, split by rows over equal devices: for each normalisation
an all-reduce of mean and variance (two float32 for each channel), and before each 3x3 convolution one row to and from
each neighbour. Attention needs all keys and values on every device. It prints the bytes that one device sends, its
share of the operations, and at which bandwidth of the link sending takes a tenth of the time of computing.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import onnx_ir as ir

from vaedeploy.graph.edit import NORMALIZATIONS
from vaedeploy.graph.graph import Inputs
from vaedeploy.graph.sizes import static_shape, with_sizes
from vaedeploy.graph.trace import trace_graph
from vaedeploy.rewrite.padding import fold_padding
from vaedeploy.source import load_reference

FP16, FP32 = 2, 4

FLOPS = 100e12
"""Operations in a second that one device is taken to do."""


def count(model: ir.Model) -> dict[str, Any]:
    """Bytes that pass one border between two devices, bytes of statistics and of keys and values, and operations."""
    halos: list[int] = []
    statistics: list[int] = []
    keys = convolutions = products = 0
    for node in model.graph:
        out = static_shape(node.outputs[0])
        if node.op_type == "Conv" and node.inputs[0] is not None and node.inputs[1] is not None:
            given, kernel = static_shape(node.inputs[0]), static_shape(node.inputs[1])
            assert given is not None
            assert kernel is not None
            assert out is not None
            if kernel[2] > 1:
                halos.append(2 * (kernel[2] // 2) * given[1] * given[3] * FP16)  # up and down
            convolutions += 2 * math.prod(out) * math.prod(kernel[1:])
        elif node.op_type in NORMALIZATIONS:
            channels = (node.inputs[0] or ir.Value()).producer()
            source = None if channels is None else static_shape(channels.inputs[0] or ir.Value())
            assert source is not None
            statistics.append(2 * source[1] * FP32)
        elif node.op_type == "MatMul":
            left = static_shape(node.inputs[0] or ir.Value())
            assert out is not None
            assert left is not None
            products += 2 * math.prod(out) * left[-1]
        elif node.op_type == "Softmax":
            first = node.inputs[0]
            while first is not None and (made := first.producer()) is not None and made.op_type != "MatMul":
                first = made.inputs[0]
            product = first.producer() if first is not None else None
            right = None if product is None else static_shape(product.inputs[1] or ir.Value())
            assert right is not None
            keys += 2 * math.prod(right) * FP16
    return {
        "halo_bytes": halos,
        "statistics_bytes": statistics,
        "keys_and_values_bytes": keys,
        "convolution_flop": convolutions,
        "product_flop": products,
    }


def split(counted: dict[str, Any], ranks: int) -> dict[str, Any]:
    """One device of ``ranks``, one in the middle. A ring's all-gather and all-reduce pass a share of (n - 1) / n."""
    around = (ranks - 1) / ranks
    sent = {
        "halos": sum(counted["halo_bytes"]),
        "statistics": round(2 * around * sum(counted["statistics_bytes"])),
        "keys_and_values": round(around * counted["keys_and_values_bytes"]),
    }
    seconds = (counted["convolution_flop"] + counted["product_flop"]) / ranks / FLOPS
    messages = len(counted["halo_bytes"]) + len(counted["statistics_bytes"]) + bool(counted["keys_and_values_bytes"])
    return {
        "ranks": ranks,
        "sent_bytes": sent,
        "messages": messages,
        "compute_ms": round(1000 * seconds, 1),
        "gb_per_s_for_a_tenth": round(sum(sent.values()) / (0.1 * seconds) / 1e9, 2),
        "latency_us_for_a_tenth": round(0.1 * seconds / messages * 1e6),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 2048, 4096])
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    graph = trace_graph(load_reference("mse840k", "random:0"), "decoder")
    fold_padding(graph.model)
    results = {}
    for size in args.sizes:
        counted = count(with_sizes(graph.model, Inputs(graph, 8).sizes(1, size, size)))
        results[str(size)] = counted | {"split": [split(counted, ranks) for ranks in args.ranks]}
        kinds = {name: value for name, value in counted.items() if not isinstance(value, list)}
        print(size, kinds, f"norms {len(counted['statistics_bytes'])}, convolutions {len(counted['halo_bytes'])}")
        print(
            f"  halo: {min(counted['halo_bytes'])} to {max(counted['halo_bytes'])}, {sum(counted['halo_bytes'])} in all"
        )
        for found in results[str(size)]["split"]:
            print(" ", found)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

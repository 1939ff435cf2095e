"""Measure what two changes of ONNX Runtime's decoder would save in memory. `vaedeploy` makes neither.

    python benchmarks/leaner.py BUNDLE [--size 1024] [--rows 64 256] [--rounds 2] [--json FILE]

sum of squares: ReduceSumSquare in place of a product and a mean, so that the squares are never in memory.
loop over N rows: that, and a Loop that scales, activates and convolves N rows at a time (with the rows beside them), in
    place of each 3x3 convolution behind a normalisation and SiLU.

Each form runs once in a process of its own, with two threads and no arena, and they take turns. ``taken`` is the peak
of resident memory during a decode of seeded noise, less what was resident before it and less the result. The bundle's
graphs are in float32, with the weights beside them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from any_size import resident

GRAPH = "decoder.ort.onnx"
SIZES = ir.TensorType(ir.DataType.INT64)
FLOATS = ir.TensorType(ir.DataType.FLOAT)


class Nodes(list[ir.Node]):
    """New nodes in order. The names of their values begin with ``prefix``."""

    def __init__(self, prefix: str) -> None:
        super().__init__()
        self.prefix = prefix

    def add(self, operator: str, *inputs: Any, type: Any = SIZES, shape: Any = None, **attributes: Any) -> ir.Value:
        node = ir.node(operator, inputs, attributes)
        (value,) = node.outputs
        value.name, value.type = f"{self.prefix}{len(self)}_{operator}", type
        value.shape = None if shape is None else ir.Shape(shape)
        self.append(node)
        return value

    def number(self, value: int) -> ir.Value:
        return self.add("Constant", value=ir.tensor(np.array([value], np.int64)))


def sum_squares(graph: ir.Graph) -> int:
    """ReduceMean(d * d) becomes ReduceSumSquare(d) / W. Gives the number of places."""
    places = 0
    for square in [node for node in graph if node.op_type == "Mul" and node.inputs[0] is node.inputs[1]]:
        ((mean, _),) = square.outputs[0].uses()
        if mean.op_type != "ReduceMean":
            continue
        nodes, values = Nodes(f"squares{places}."), square.inputs[0]
        total = nodes.add("ReduceSumSquare", values, mean.inputs[1], type=FLOATS, keepdims=0)
        width = nodes.add("Cast", nodes.add("Shape", values, start=-1), type=FLOATS, to=ir.DataType.FLOAT)
        quotient = nodes.add("Div", total, width, type=FLOATS, shape=mean.outputs[0].shape)
        graph.insert_before(mean, nodes)
        mean.outputs[0].replace_all_uses_with(quotient)
        graph.remove([mean, square], safe=True)
        places += 1
    return places


def chain_before(convolution: ir.Node) -> list[ir.Node] | None:
    """Sub, Mul and Add of the normalisation, Sigmoid and Mul of SiLU before a 3x3 convolution; None for another one."""
    of_rows = [convolution.attributes.get_ints(name, ()) for name in ("kernel_shape", "pads", "strides")]
    if [list(values or ()) for values in of_rows] not in ([[3, 3], [1] * 4, [1] * 2], [[3, 3], [1] * 4, []]):
        return None
    chain = [convolution.inputs[0].producer()]
    for operator, taken in (("Mul", 1), ("Sigmoid", 0), ("Add", 0), ("Mul", 0), ("Sub", 0)):
        if chain[0] is None or chain[0].op_type != operator:
            return None
        chain.insert(0, chain[0].inputs[taken].producer())
    return chain[1:]


def loop_over_rows(graph: ir.Graph, rows: int) -> int:
    """Each chain, and its convolution, become a Loop over blocks of ``rows`` rows. Gives the number of places."""
    places = 0
    for convolution in [node for node in graph if node.op_type == "Conv" and not node.outputs[0].is_graph_output()]:
        chain = chain_before(convolution)
        if chain is None:
            continue
        (x, mean), gain, bias = chain[0].inputs, chain[1].inputs[1], chain[2].inputs[1]
        outer, body, strip = Nodes(f"loop{places}."), Nodes(f"rows{places}."), [None, x.shape[1], None, None]
        none, one, axis, block = (outer.number(value) for value in (0, 1, 2, rows))
        height = outer.add("Shape", x, start=2, end=3)
        trips = outer.add("Div", outer.add("Add", height, outer.number(rows - 1)), block)
        sequence = outer.add("SequenceEmpty", type=ir.SequenceType(FLOATS), dtype=ir.DataType.FLOAT)
        count = ir.Value(name=f"rows{places}.count", type=SIZES, shape=ir.Shape([]))
        going = ir.Value(name=f"rows{places}.going", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))
        before = ir.Value(name=f"rows{places}.before", type=ir.SequenceType(FLOATS))
        first = body.add("Mul", body.add("Unsqueeze", count, none), block)
        last = body.add("Min", body.add("Add", first, block), height)
        top, bottom = (
            body.add("Max", body.add("Sub", first, one), none),
            body.add("Min", body.add("Add", last, one), height),
        )
        y = body.add("Slice", x, top, bottom, axis, type=FLOATS, shape=strip)
        y = body.add("Mul", body.add("Sub", y, mean, type=FLOATS, shape=strip), gain, type=FLOATS, shape=strip)
        y = body.add("Add", y, bias, type=FLOATS, shape=strip)
        y = body.add("Mul", y, body.add("Sigmoid", y, type=FLOATS, shape=strip), type=FLOATS, shape=strip)
        above = body.add("Sub", one, body.add("Sub", first, top))  # 1 at the image's border, where it is padded
        below = body.add("Sub", one, body.add("Sub", bottom, last))
        y = body.add("Pad", y, body.add("Concat", above, below, axis=0), None, axis, type=FLOATS, shape=strip)
        channels = convolution.outputs[0].shape[1]
        y = body.add(
            "Conv", y, *convolution.inputs[1:], type=FLOATS, shape=[None, channels, None, None], pads=[0, 1, 0, 1]
        )
        after = body.add("SequenceInsert", before, y, type=before.type)
        on = body.add("Identity", going, type=going.type, shape=[])
        inner = ir.Graph([count, going, before], [on, after], nodes=body, name=f"rows{places}")
        blocks = outer.add("Loop", outer.add("Squeeze", trips), None, sequence, type=before.type, body=inner)
        joined = outer.add("ConcatFromSequence", blocks, type=FLOATS, shape=convolution.outputs[0].shape, axis=2)
        graph.insert_before(convolution, outer)
        convolution.outputs[0].replace_all_uses_with(joined)
        graph.remove([convolution, *reversed(chain[1:])], safe=True)
        places += 1
    return places


def write_forms(bundle: Path, folder: Path, blocks: list[int]) -> dict[str, Path]:
    """The graphs to compare, by name, in ``folder``."""
    for weights in bundle.glob("*.data"):
        shutil.copyfile(weights, folder / weights.name)  # ONNX Runtime follows no links out of the folder
    kinds = {"as it is": lambda graph: 0, "sum of squares": sum_squares}
    for rows in blocks:
        kinds[f"loop over {rows} rows"] = lambda graph, rows=rows: sum_squares(graph) + loop_over_rows(graph, rows)
    forms = {}
    for index, (name, change) in enumerate(kinds.items()):
        model = ir.load(bundle / GRAPH)
        print(f"{name}: {change(model.graph)} places changed", flush=True)
        forms[name] = folder / f"{index}.onnx"
        ir.save(model, forms[name])
    return forms


def measure(graph: str, size: int, result: Path) -> dict[str, Any]:
    """One decode in this process. result: where the image goes."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.enable_cpu_mem_arena = 2, False
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    _, channels, *_ = session.get_inputs()[0].shape
    random = np.random.default_rng(0)
    latents = [random.standard_normal((1, channels, side, side)).astype(np.float32) for side in (16, size // 8)]
    session.run(["image"], {"latent": latents[0]})
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    before, began = resident("VmRSS"), time.process_time()
    (image,) = session.run(["image"], {"latent": latents[1]})
    seconds, peak = time.process_time() - began, resident("VmHWM")
    np.save(result, image)
    return {"taken": peak - before - image.nbytes, "processor_seconds": round(seconds, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--rows", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)  # of the one graph, in a process of its own
    args = parser.parse_args()
    if args.result:
        print(json.dumps(measure(str(args.bundle), args.size, args.result)))
        return
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as named:
        folder = Path(named)
        forms = write_forms(args.bundle, folder, args.rows)
        for turn, (name, graph) in itertools.product(range(args.rounds), forms.items()):
            result = graph.with_suffix(".npy")
            command = [sys.executable, __file__, str(graph), "--size", str(args.size), "--result", str(result)]
            told = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            own, plain = np.load(result), np.load(folder / "0.npy")
            error = float(np.linalg.norm(own - plain) / np.linalg.norm(plain))
            load = round(os.getloadavg()[0], 1)
            rows.append({"form": name, "size": args.size, "turn": turn, **told, "rel_l2": error, "load": load})
            print(rows[-1], flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

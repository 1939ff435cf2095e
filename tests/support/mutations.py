"""Changes of files as strangers make them: of JSON, of bytes and of ONNX graphs, each drawn from a generator."""

from __future__ import annotations

import copy
import json
import random
from contextlib import suppress
from typing import Any

import onnx
from onnx import TensorProto, helper, numpy_helper

RAW = "raw\u241f"
"""The beginning of a string that is put into the text as it is, without quotes: what no JSON writer would write."""

DEEP = RAW + "[" * 50_000 + "]" * 50_000

SCALARS: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 7, 64, 2**31, 2**63, 2**64, 10**400, -0.0, 0.5, 1e308, -1e-320),
    *("", " ", "x", "../../etc/passwd", "/dev/zero", "a\\b", "nul", "\0", "\x1b[31m", "\u202e", "é" * 300, "9" * 5000),
    *("fp16", "bf16", "tensorrt", "encoder", "portable", "f" * 64, "0" * 64, "8.9", "1e9", "NaN"),
    *(RAW + "NaN", RAW + "1e999", RAW + "-Infinity", RAW + '"\\ud800"', RAW + "01", RAW, RAW + "{,}", DEEP),
)


def value(draw: random.Random) -> Any:
    """A number, a text, or a small list or object of such."""
    kind = draw.randrange(8)
    if kind == 0:
        return [value(draw) for _ in range(draw.randrange(4))]
    if kind == 1:
        return {str(draw.choice(SCALARS))[:100]: value(draw) for _ in range(draw.randrange(3))}
    return copy.deepcopy(draw.choice(SCALARS))


def changed(document: Any, draw: random.Random) -> Any:
    """A copy of parsed JSON with one to three values replaced, taken away, doubled, renamed or exchanged."""
    holder = [copy.deepcopy(document)]
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        places = list(_places(holder))
        box, key = draw.choice(places)
        what = draw.randrange(7)
        if what == 0 and box is not holder:
            del box[key]
        elif what == 1 and isinstance(box, dict):
            box[str(draw.choice(SCALARS))[:200]] = box.pop(key)
        elif what == 2 and isinstance(box, dict):
            box["more"] = value(draw)
        elif what == 3 and isinstance(box[key], list):
            box[key] = box[key] * draw.choice((2, 3, 100))
        elif what == 4:
            other, name = draw.choice(places)
            box[key] = copy.deepcopy(other[name])
        else:
            box[key] = value(draw)
    return holder[0]


def _places(holder: Any) -> Any:
    pairs = list(holder.items() if isinstance(holder, dict) else enumerate(holder))
    for key, item in pairs:
        yield holder, key
        if isinstance(item, dict | list):
            yield from _places(item)


def text(document: Any) -> str:
    """JSON, with what begins with ``RAW`` written as it is."""
    if isinstance(document, str):
        return document.removeprefix(RAW) if document.startswith(RAW) else json.dumps(document)
    if isinstance(document, dict):
        return "{" + ", ".join(f"{json.dumps(str(k))}: {text(v)}" for k, v in document.items()) + "}"
    if isinstance(document, list | tuple):
        return "[" + ", ".join(map(text, document)) + "]"
    return json.dumps(document)


def damaged(data: bytes, draw: random.Random) -> bytes:
    """Bytes with bits flipped, parts cut out, doubled, moved or overwritten."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8))):
        if not changed:
            break
        start = draw.randrange(len(changed))
        stop = min(len(changed), start + draw.choice((1, 2, 4, 16, 300)))
        what = draw.randrange(6)
        if what == 0:
            changed[start] ^= 1 << draw.randrange(8)
        elif what == 1:
            del changed[start:stop]
        elif what == 2:
            changed[start:start] = changed[start:stop] * draw.choice((1, 50))
        elif what == 3:
            changed[start:stop] = draw.choice((b"\xff", b"\0", b"\x7f", b"\x80")) * (stop - start)
        elif what == 4:
            del changed[start:]
        else:
            changed[start:stop] = draw.randbytes(stop - start)
    return bytes(changed)


def safetensors(header: Any, data: bytes) -> bytes:
    """A safetensors file, its length field right."""
    told = text(header).encode("utf-8", "surrogatepass")
    return len(told).to_bytes(8, "little") + told + data


NAMES = (
    *("h", "batch", "", " ", "9**9**9**9", "h*" * 40 + "h", "(" * 40 + "h" + ")" * 40, "h-1000", "h/0", "h%0", "max()"),
    *("__import__('os').system('true')", "TruncToInt(2.0*ToFloat(s53))", "h" * 3000, "a+b*c//d", "9" * 50, "é", "\x1b"),
    *("Max(" + ",".join(f"a{i}-b{i}" for i in range(9)) + ")", "floor(" * 9 + "h/3" + ")" * 9, "h*99999999", "0", "-5"),
)
"""Names of dimensions."""

OPERATORS = ("Relu", "Conv", "Resize", "Reshape", "If", "Loop", "Constant", "Softmax", "MatMul", "Nowhere", "", "Cast")


def changed_graph(model: onnx.ModelProto, draw: random.Random) -> onnx.ModelProto:
    """A copy of a model with one to three changes."""
    model = copy.deepcopy(model)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        with suppress(IndexError):  # an earlier change took away all that this one chooses from
            draw.choice(CHANGES)(model, draw)
    return model


def _dimension(model: onnx.ModelProto, draw: random.Random) -> None:
    value = draw.choice([*model.graph.input, *model.graph.output])
    if value.type.tensor_type.shape.dim:
        dim = draw.choice(value.type.tensor_type.shape.dim)
        if draw.random() < 0.7:
            dim.dim_param = draw.choice(NAMES)
        else:
            dim.dim_value = draw.choice((-1, 0, 1, 2**31, 2**62))


def _type(model: onnx.ModelProto, draw: random.Random) -> None:
    value = draw.choice([*model.graph.input, *model.graph.output])
    value.type.tensor_type.elem_type = draw.choice((0, 1, 7, 8, 9, 10, 11, 16, 99))
    if draw.random() < 0.3:
        value.type.tensor_type.ClearField("shape")


def _operator(model: onnx.ModelProto, draw: random.Random) -> None:
    node = draw.choice(model.graph.node)
    if draw.random() < 0.7:
        node.op_type = draw.choice(OPERATORS)
    else:
        node.domain = draw.choice(("com.microsoft", "x", "ai.onnx.ml"))


def _wire(model: onnx.ModelProto, draw: random.Random) -> None:
    node = draw.choice(model.graph.node)
    names = [name for n in model.graph.node for name in (*n.input, *n.output)] + ["", "nowhere", "\x1b[31m"]
    side = draw.choice((node.input, node.output))
    if side and draw.random() < 0.8:
        side[draw.randrange(len(side))] = draw.choice(names)
    else:
        side.append(draw.choice(names))


def _nodes(model: onnx.ModelProto, draw: random.Random) -> None:
    nodes = list(model.graph.node)
    what = draw.randrange(3)
    if what == 0:
        del nodes[draw.randrange(len(nodes))]
    elif what == 1:
        nodes.append(copy.deepcopy(draw.choice(nodes)))
    else:
        draw.shuffle(nodes)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _attribute(model: onnx.ModelProto, draw: random.Random) -> None:
    node = draw.choice(model.graph.node)
    if node.attribute and draw.random() < 0.7:
        attribute = draw.choice(node.attribute)
        what = draw.randrange(4)
        if what == 0:
            del attribute.ints[:]
            attribute.ints.extend(draw.choice(([], [-1], [0] * 5, [2**62], [3] * 70)))
        elif what == 1:
            attribute.type = draw.randrange(14)
        elif what == 2:
            attribute.s = draw.choice((b"", b"\xff", b"x" * 5000, b"linear"))
        else:
            attribute.name = draw.choice(("", "axis", "kernel_shape", "\x1b"))
    else:
        node.attribute.append(
            helper.make_attribute(draw.choice(("axis", "group", "mode")), draw.choice((-1, 0, 7, "x")))
        )


def _weight(model: onnx.ModelProto, draw: random.Random) -> None:
    if not model.graph.initializer:
        return
    tensor = draw.choice(model.graph.initializer)
    what = draw.randrange(6)
    if what == 0:
        del tensor.dims[:]
        tensor.dims.extend(draw.choice(([], [-1], [2**40, 2**40], [0], [3, 3])))
    elif what == 1:
        tensor.data_type = draw.choice((0, 1, 2, 7, 8, 10, 16, 17, 99))
    elif what == 2:
        tensor.raw_data = draw.randbytes(draw.choice((0, 1, 7, 4000)))
    elif what == 3:
        tensor.name = draw.choice(("", "x", model.graph.node[0].output[0]))
    else:
        tensor.data_location = TensorProto.EXTERNAL
        for key, given in (
            (
                "location",
                draw.choice(("/etc/passwd", "../weights", "nowhere", "", "a/../../b", "in.onnx", "/dev/zero")),
            ),
            ("offset", draw.choice(("-1", "0", "99999999999", "x"))),
            ("length", draw.choice(("-1", "0", "4", "99999999999", "x"))),
        ):
            if draw.random() < 0.8:
                entry = tensor.external_data.add()
                entry.key, entry.value = key, given


def _versions(model: onnx.ModelProto, draw: random.Random) -> None:
    what = draw.randrange(3)
    if what == 0:
        model.ir_version = draw.choice((0, 1, 3, 99, 2**40))
    elif what == 1 and model.opset_import:
        model.opset_import[0].version = draw.choice((-1, 0, 1, 7, 13, 17, 23, 99, 2**40))
    else:
        model.opset_import.append(
            helper.make_opsetid(draw.choice(("", "x", "com.microsoft")), draw.choice((1, 13, 20)))
        )


def _function(model: onnx.ModelProto, draw: random.Random) -> None:
    """Functions that call each other twice, to some depth; the last of them may call itself."""
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("f", 1)]
    for index in range(draw.choice((1, 3, 14, 40))):
        call = ("Relu", "") if index == 0 and draw.random() < 0.8 else (f"f{max(0, index - 1)}", "f")
        nodes = [helper.make_node(call[0], [a], [b], domain=call[1]) for a, b in (("a", "b"), ("b", "c"))]
        model.functions.append(helper.make_function("f", f"f{index}", ["a"], ["c"], nodes, opsets))
    model.opset_import.append(opsets[1])
    node = draw.choice(model.graph.node)
    node.op_type, node.domain = model.functions[-1].name, "f"


def _subgraph(model: onnx.ModelProto, draw: random.Random) -> None:
    inner = helper.make_graph([], "inner", [], [], [])
    for _ in range(draw.choice((0, 1, 60))):
        inner = helper.make_graph(
            [helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)][:1], "i", [], []
        )
        if inner.ByteSize() > 200_000:
            break
    node = draw.choice(model.graph.node)
    node.attribute.append(helper.make_attribute("body", inner))


def _chain(model: onnx.ModelProto, draw: random.Random) -> None:
    length = draw.choice((50, 300, 20_000))
    first = model.graph.input[0].name if model.graph.input else "x"
    for index in range(length):
        given = first if index == 0 else f"chain{index - 1}"
        model.graph.node.append(helper.make_node(draw.choice(("Relu", "Identity")), [given], [f"chain{index}"]))


def _names(model: onnx.ModelProto, draw: random.Random) -> None:
    name = draw.choice(("", "\x1b[31m", "x" * 5000, "\u202e", "a/b", "'"))
    target = draw.choice((*model.graph.input, *model.graph.output, *model.graph.node, *model.graph.initializer))
    target.name = name


def _empty(model: onnx.ModelProto, draw: random.Random) -> None:
    del draw.choice((model.graph.input, model.graph.output, model.graph.node, model.graph.initializer))[:]
    if not model.graph.node:
        model.graph.node.append(helper.make_node("Relu", ["x"], ["y"]))
    if not model.graph.input:
        model.graph.input.append(helper.make_tensor_value_info("x", 1, None))
    if not model.graph.output:
        model.graph.output.append(helper.make_tensor_value_info("y", 1, None))


def _constant(model: onnx.ModelProto, draw: random.Random) -> None:
    import numpy as np

    tensor = numpy_helper.from_array(np.arange(4, dtype=np.float32), "k")
    if draw.random() < 0.5:
        tensor.dims[0] = draw.choice((-1, 0, 5, 2**40))
    model.graph.node.insert(0, helper.make_node("Constant", [], [f"k{draw.random()}"], value=tensor))


CHANGES = (
    *(_dimension, _dimension, _type, _operator, _wire, _wire, _nodes, _attribute, _attribute, _weight, _weight),
    *(_versions, _function, _subgraph, _chain, _names, _empty, _constant),
)

"""All rules together on any small graph of the operators that VAEs are made of: what it computes stays."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from cuda_operators import evaluator
from fused import draw, graph, node, operators
from onnx_ir.passes.common import RemoveUnusedNodesPass

from vaedeploy.rewrite.cuda import fuse_for_cuda

Shape = tuple[int, int, int]


@dataclass
class Drawn:
    """A graph that is being drawn. values: name -> (channels, height factor, width factor), for the images so far."""

    random: random.Random
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: dict[str, Any] = field(default_factory=dict)
    values: dict[str, Shape] = field(default_factory=lambda: {"x": (8, 1, 1)})
    count: int = 0

    def add(self, operator: str, inputs: str, shape: Shape | None = None, **attributes: Any) -> str:
        """The output of a new node, an image of that shape where one is given. Half the nodes have no name."""
        self.count += 1
        output = f"v{self.count}"
        name = None if self.random.random() < 0.5 else ""
        self.nodes.append(node(operator, inputs, output, name, **attributes))
        if shape is not None:
            self.values[output] = shape
        return output

    def constant(self, array: Any) -> str:
        self.count += 1
        self.tensors[f"t{self.count}"] = np.asarray(array)
        return f"t{self.count}"

    def weights(self, *shape: int) -> str:
        area = int(np.prod(shape[1:])) if len(shape) == 4 else 1
        return self.constant(draw(*shape, seed=self.random.randrange(2**30)) / np.float32(np.sqrt(area)))

    def convolution(self, x: str) -> str:
        channels, *factors = self.values[x]
        outputs, kernel = self.random.choice([4, 8, 16]), self.random.choice([1, 3, 3, 3])
        groups = self.random.choice([1, 1, 1, 2])
        pads = [kernel // 2] * 4
        bias = self.weights(outputs) if self.random.random() < 0.7 else ""
        given = f"{x} {self.weights(outputs, channels // groups, kernel, kernel)} {bias}"
        return self.add("Conv", given, (outputs, *factors), pads=pads, group=groups)

    def group_norm(self, x: str) -> str:
        x = self.convolution(x)
        channels = self.values[x][0]
        groups = channels // self.random.choice([1, 2, 4])
        column = self.random.choice([(channels, 1, 1), (1, channels, 1, 1)])
        grouped = self.add("Reshape", f"{x} {self.constant(np.array([0, groups, -1]))}")
        ones, zeros = self.constant(np.ones(groups, np.float32)), self.constant(np.zeros(groups, np.float32))
        normal = self.add("InstanceNormalization", f"{grouped} {ones} {zeros}", epsilon=1e-3)
        back = self.add("Reshape", f"{normal} {self.add('Shape', x)}")
        scaled = self.add("Mul", f"{back} {self.weights(*column)}")
        shifted = self.add("Add", f"{scaled} {self.weights(*column)}", self.values[x])
        return self.silu(shifted) if self.random.random() < 0.7 else shifted

    def silu(self, x: str) -> str:
        return self.add("Mul", f"{x} {self.add('Sigmoid', x, self.values[x])}", self.values[x])

    def upsample(self, x: str) -> str:
        channels, height, width = self.values[x]
        scales = self.constant(np.array([1, 1, 2, self.random.choice([1, 2, 2])], np.float32))
        attributes = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        mode = self.random.choice(["nearest", "nearest", "nearest", "linear"])
        shape = channels, 2 * height, width * int(self.tensors[scales][3])
        large = self.add("Resize", f"{x} _ {scales}", shape, mode=mode, **attributes)
        return self.convolution(large) if self.random.random() < 0.8 else large

    def add_same(self, x: str) -> str:
        same = [value for value, shape in self.values.items() if shape == self.values[x]]
        other = self.random.choice([*same, self.weights(self.values[x][0], 1, 1), self.weights(1)])
        operands = [x, other]
        self.random.shuffle(operands)
        return self.add(self.random.choice(["Add", "Sub", "Mul"]), " ".join(operands), self.values[x])

    def concat(self, x: str) -> str:
        other = self.random.choice([v for v, shape in self.values.items() if shape[1:] == self.values[x][1:]])
        channels = self.values[x][0] + self.values[other][0]
        return self.add("Concat", f"{x} {other}", (channels, *self.values[x][1:]), axis=self.random.choice([1, -3]))

    def sequence(self, x: str) -> str:
        """There and back, through a product or not."""
        shape = self.values[x]
        channels = shape[0]
        flat = self.add("Reshape", f"{x} {self.constant(np.array([0, channels, -1]))}")
        if self.random.random() < 0.6:
            last = self.add("Transpose", flat, perm=[0, 2, 1])
            product = self.add("MatMul", f"{last} {self.weights(channels, channels)}")
            flat = self.add("Transpose", product, perm=[0, 2, 1])
        return self.add("Reshape", f"{flat} {self.add('Shape', x)}", shape)

    def there_and_back(self, x: str) -> str:
        last = self.add("Transpose", x, perm=[0, 2, 3, 1])
        last = self.add("Tanh", last) if self.random.random() < 0.5 else last
        return self.add("Transpose", last, self.values[x], perm=[0, 3, 1, 2])

    def clip(self, x: str) -> str:
        low, high = (self.constant(np.float32(number)) for number in (-1, 1))
        return self.add("Clip", f"{x} {self.random.choice([low, '_'])} {high}", self.values[x])

    def other(self, x: str) -> str:
        return self.add(self.random.choice(["Softsign", "Identity", "Tanh"]), x, self.values[x])


KINDS = [
    Drawn.convolution,
    Drawn.group_norm,
    Drawn.group_norm,
    Drawn.silu,
    Drawn.upsample,
    Drawn.add_same,
    Drawn.concat,
    Drawn.sequence,
    Drawn.there_and_back,
    Drawn.clip,
    Drawn.other,
]


def drawn(seed: int) -> onnx.ModelProto:
    chosen = random.Random(seed)
    made = Drawn(chosen)
    for _ in range(chosen.randint(3, 10)):
        small = [value for value, shape in made.values.items() if max(shape[1:]) <= 2 and shape[0] <= 32]
        recent = small[-1] if chosen.random() < 0.6 else chosen.choice(small)
        chosen.choice(KINDS)(made, recent)
    last = list(made.values)[-1]
    more = chosen.sample(list(made.values)[1:-1], min(chosen.randint(0, 2), len(made.values) - 2))
    inputs = {"x": ("batch", 8, "height", "width")}
    opset = chosen.choice([18, 19, 20, 21])
    model = ir.from_proto(graph(made.nodes, made.tensors, shapes=inputs, outputs=[last, *more], opset=opset))
    RemoveUnusedNodesPass()(model)
    return ir.to_proto(model)


@pytest.mark.parametrize("seed", range(60))
def test_any_graph(seed: int) -> None:
    model = drawn(seed)
    new = ir.from_proto(model)
    outcomes = {outcome.rule: outcome for outcome in fuse_for_cuda(new, set())}
    proto = ir.to_proto(new)
    onnx.checker.check_model(proto, full_check=True)
    assert "Conv" not in operators(proto)
    assert operators(proto).count("GroupNorm") == outcomes["fuse_group_norm"].matches
    read = {name for n in proto.graph.node for name in n.input} | {value.name for value in proto.graph.output}
    assert {n.output[0] for n in proto.graph.node} | {t.name for t in proto.graph.initializer} <= read
    names = [n.name for n in proto.graph.node if n.name]
    assert len(set(names)) == len(names)
    x = draw(2, 8, 3, 5, seed=seed)
    for value, found, expected in zip(
        model.graph.output, evaluator(proto).run(None, {"x": x}), evaluator(model).run(None, {"x": x}), strict=True
    ):
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
        # Ten layers in float32, and normalisations whose variance may be as small as epsilon, 1e-3.
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max(), err_msg=value.name)

"""No constant of a model vanishes in its graph, however near to 0 or 1 it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import onnxscript.optimizer
import pytest
import torch
from onnxscript.rewriter.rules import common
from torch import Tensor, nn

from vaedeploy.graph.graph import save_graph
from vaedeploy.graph.simplify import UPSTREAM, simplify
from vaedeploy.graph.trace import trace_graph
from vaedeploy.values.latent import LatentSpec
from vaedeploy.values.reference import Reference

NEAR_0 = [sign * 10.0**power for power in range(-15, -6) for sign in (1, -1)]
NEAR_1 = [1 + sign * part for part in (1e-7, 3e-7, 1e-6, 9e-6, 1e-5) for sign in (1, -1)]


class Divides(nn.Module):
    """An encoder with a channel for each constant and operator: sums and differences are denominators.

    held: whether constants are buffers, as models have them, or numbers in the code.
    """

    def __init__(self, held: bool) -> None:
        super().__init__()
        self.near_0, self.near_1 = torch.tensor(NEAR_0), torch.tensor(NEAR_1)
        if held:
            for index, number in enumerate([*self.near_0, *self.near_1]):
                self.register_buffer(f"c{index}", number)
        self.held = held

    def numbers(self) -> list[Tensor] | list[float]:
        return list(self.buffers()) if self.held else [*self.near_0.tolist(), *self.near_1.tolist()]

    def forward(self, image: Tensor) -> Tensor:
        x, y = image[:, :1], image[:, 1:2]
        near_0, near_1 = self.numbers()[: len(NEAR_0)], self.numbers()[len(NEAR_0) :]
        results = [x / (y + c) for c in near_0] + [x / (y - c) for c in near_0]
        results += [x * c for c in near_1] + [x / c for c in near_1]
        return torch.cat(results, 1)


@pytest.mark.parametrize("held", [False, True], ids=["numbers", "buffers"])
def test_constants_near_0_and_1_stay(tmp_path: Path, held: bool) -> None:
    encoder = Divides(held)
    spec = LatentSpec(channels=2 * len(NEAR_0) + 2 * len(NEAR_1), factor=1, scale=1.0, sampled=False)
    save_graph(trace_graph(Reference(encoder, nn.Identity(), spec), "encoder"), tmp_path / "encoder.onnx")
    image = np.random.default_rng(0).uniform(-1, 1, (1, 3, 4, 6)).astype(np.float32)
    image[:, 1, ::2] = 0  # with the constant gone, x / 0 and 0 / 0
    image[:, 1, 1] *= 1e-7
    image[:, 0, :, ::2] = 0
    session = onnxruntime.InferenceSession(tmp_path / "encoder.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"image": image})
    expected = encoder(torch.from_numpy(image)).numpy()
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(found, expected)  # one rounding for each operator, the same in both


def model(text: str) -> ir.Model:
    """float[N] x -> float[N] y by ``text``."""
    parsed = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 20]> g (float[N] x) => (float[N] y) {{ {text} }}'
    )
    return ir.from_proto(parsed)


@pytest.mark.parametrize("operator", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("swapped", [False, True])
def test_exact_no_ops_vanish(operator: str, swapped: bool) -> None:
    number = {"Add": 0, "Sub": 0, "Mul": 1, "Div": 1}[operator]
    given = model(
        f"c = Constant <value_float = {number}.0> () z = Neg(x) "
        f"w = {operator}({'c, z' if swapped else 'z, c'}) y = Neg(w)"
    )
    simplify(given)
    vanishes = not swapped or operator in ("Add", "Mul")
    assert [node.op_type for node in given.graph] == (["Neg", "Neg"] if vanishes else ["Neg", operator, "Neg"])


def test_onnxscript_has_every_rule() -> None:
    assert [name for name in UPSTREAM if not hasattr(common, name)] == []


@pytest.mark.parametrize(("operator", "number"), [("Add", 1e-9), ("Sub", 1e-9), ("Mul", 1.000009), ("Div", 1.000009)])
def test_upstream_still_drops_constants(operator: str, number: float) -> None:
    """When this fails, onnxscript compares exactly: once pyproject.toml asks for that version, simplify can go."""
    given = model(f"c = Constant <value_float = {number}> () z = Neg(x) w = {operator}(z, c) y = Neg(w)")
    ours = given.clone()
    onnxscript.optimizer.optimize(given)
    simplify(ours)
    assert [node.op_type for node in given.graph] == ["Neg", "Neg"]
    assert [node.op_type for node in ours.graph] == ["Neg", operator, "Neg"]

"""Maxima are those of every tensor over every input, whatever the numbers are, in little memory."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from vaedeploy.bundle.calibration import Calibration, decode_calibration, encode_calibration
from vaedeploy.errors import BackendError, BundleError, InputError
from vaedeploy.numerics.maxima import measure_maxima


def chain(nodes: list[onnx.NodeProto], dtype: int = TensorProto.FLOAT, **tensors: np.ndarray) -> ir.Model:
    """x (batch, n) -> ``nodes`` -> y."""
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "chain",
            [helper.make_tensor_value_info("x", dtype, ["batch", "n"])],
            [helper.make_tensor_value_info("y", dtype, None)],
            [numpy_helper.from_array(array, name) for name, array in tensors.items()],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


SQUARES = [helper.make_node("Mul", ["x", "x"], ["h"]), helper.make_node("Neg", ["h"], ["y"])]


def test_every_tensor_of_a_traced_graph(tiny_graphs: Path) -> None:
    """Over two sizes, against numpy; nothing is fused away."""
    model = ir.load(tiny_graphs / "decoder.onnx")
    feeds = [
        {"latent": np.random.default_rng(seed).normal(size=(1, 4, 3 + seed, 5)).astype(np.float32)} for seed in range(2)
    ]
    maxima = measure_maxima(model, feeds)
    values = [value for node in model.graph for value in node.outputs if value.dtype == ir.DataType.FLOAT]
    assert sorted(maxima) == sorted(["latent", *(str(value.name) for value in values)])
    proto = ir.to_proto(model)
    del proto.graph.output[:]
    names = sorted(maxima.keys() - {"latent"})
    proto.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    reference = ReferenceEvaluator(proto)
    results = [dict(zip(names, reference.run(None, feed), strict=True)) | feed for feed in feeds]
    for name, maximum in maxima.items():
        expected = max(float(np.abs(result[name]).max()) for result in results)
        # Two programs' float32 rounding.
        assert maximum == pytest.approx(expected, rel=1e-4), name


def test_the_largest_of_all_feeds_and_signs() -> None:
    feeds = [{"x": np.array([[1, -3]], np.float32)}, {"x": np.array([[2, 0], [1, 1]], np.float32)}]
    assert measure_maxima(chain(SQUARES), feeds) == {"x": 3.0, "h": 9.0, "y": 9.0}


def test_feeds_are_taken_one_by_one() -> None:
    told: list[tuple[str, float, float]] = []
    feeds = ({"x": np.full((1, size), size, np.float32)} for size in (1, 2, 3))
    maxima = measure_maxima(chain(SQUARES), feeds, progress=lambda *step: told.append(step))
    assert maxima["h"] == 9.0
    assert told == [("Measuring activations", done, 1) for done in (0, 0, 0, 1)]
    told.clear()
    measure_maxima(chain(SQUARES), [{"x": np.ones((1, 1), np.float32)}] * 2, progress=lambda *step: told.append(step))
    assert told == [("Measuring activations", done, 2) for done in (0, 1, 2)]


@pytest.mark.parametrize(
    ("numbers", "x", "h", "y"),
    [
        ([1, 1e30], 1e30, math.inf, math.inf),
        ([-math.inf, 1], math.inf, math.inf, math.inf),
        ([math.nan, 2], math.inf, math.inf, math.inf),
        ([*range(1000), math.nan, 2], math.inf, math.inf, math.inf),
        ([math.nan, 1e30], math.inf, math.inf, math.inf),
        ([], 0.0, 0.0, 0.0),
    ],
)
def test_numbers_that_are_not_finite(numbers: list[float], x: float, h: float, y: float) -> None:
    maxima = measure_maxima(chain(SQUARES), [{"x": np.array([numbers], np.float32)}])
    assert maxima == {"x": np.float32(x), "h": h, "y": y}


def test_infinity_in_the_middle_is_seen() -> None:
    """Where later nodes make it finite again."""
    nodes = [*SQUARES[:1], helper.make_node("Tanh", ["h"], ["y"])]
    assert measure_maxima(chain(nodes), [{"x": np.full((1, 2), 1e30, np.float32)}])["h"] == math.inf


def test_a_sum_that_overflows_is_no_infinity() -> None:
    assert measure_maxima(
        chain(SQUARES[1:], h=np.full(4, -3e38, np.float32)), [{"x": np.ones((1, 4), np.float32)}]
    ) == {
        "x": 1.0,
        "y": pytest.approx(3e38),
    }


@pytest.mark.parametrize("order", [1, -1])
def test_what_is_not_finite_outranks_every_number(order: int) -> None:
    feeds = [{"x": np.array([[number]], np.float32)} for number in (5, math.nan)][::order]
    assert measure_maxima(chain(SQUARES), feeds)["x"] == math.inf


def test_half_precision_and_double() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["half"], ["wide"], to=TensorProto.DOUBLE),
        helper.make_node("Cast", ["wide"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Cast", ["whole"], ["y"], to=TensorProto.FLOAT),
    ]
    maxima = measure_maxima(chain(nodes), [{"x": np.array([[-2049.3, 7]], np.float32)}])
    # float16 has every second integer there.
    assert maxima == {"x": np.float32(2049.3), "half": 2050.0, "wide": 2050.0, "y": 2050.0}


def test_types_that_are_not_written_in_the_graph_are_inferred() -> None:
    model = chain(SQUARES)
    model.graph[0].outputs[0].type = None
    assert measure_maxima(model, [{"x": np.full((1, 1), 3, np.float32)}])["h"] == 9.0
    assert model.graph[0].outputs[0].type is None


def test_the_given_graph_is_not_changed_and_may_be_a_path(tmp_path: Path) -> None:
    model = chain(SQUARES)
    before = ir.to_proto(model).SerializeToString()
    feeds = [{"x": np.full((1, 1), 3, np.float32)}]
    maxima = measure_maxima(model, feeds)
    assert ir.to_proto(model).SerializeToString() == before
    ir.save(model, tmp_path / "model.onnx")
    assert measure_maxima(tmp_path / "model.onnx", feeds) == maxima
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_names_that_are_taken() -> None:
    nodes = [
        helper.make_node("Neg", ["x"], ["measure_0_ReduceMax"]),
        helper.make_node("Neg", ["measure_0_ReduceMax"], ["y"]),
    ]
    maxima = measure_maxima(chain(nodes), [{"x": np.full((1, 1), 3, np.float32)}])
    assert maxima == {"x": 3.0, "measure_0_ReduceMax": 3.0, "y": 3.0}


def test_errors() -> None:
    with pytest.raises(InputError, match="there is nothing to measure activations on: give at least one feed"):
        measure_maxima(chain(SQUARES), [])
    with pytest.raises(BackendError, match=r"ONNX Runtime failed to measure the graph on x \(3,\): "):
        measure_maxima(chain(SQUARES), [{"x": np.zeros(3, np.float32)}])
    unknown = chain([helper.make_node("Neg", ["x"], ["y"])])
    unknown.graph[0].domain = "nobody"
    with pytest.raises(BackendError, match=r"^ONNX Runtime cannot load .*probe\.onnx: "):
        measure_maxima(unknown, [{"x": np.zeros((1, 1), np.float32)}])


CALIBRATION = Calibration({"decoder": {"b": 2.5, "a": math.inf}, "encoder": {}}, ("astronaut 512x512",))


def test_what_is_written_is_read() -> None:
    read = decode_calibration(encode_calibration(CALIBRATION))
    assert read == Calibration({"decoder": {"a": None, "b": 2.5}, "encoder": {}}, ("astronaut 512x512",))
    assert read.of("decoder") == CALIBRATION.of("decoder") == {"a": math.inf, "b": 2.5}
    assert read.of("encoder") == {}
    assert Calibration({}, ()).of("encoder") == {}


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"{", "Input data was truncated"),
        (b"\xff", "malformed"),
        (b'{"maxima": {}}', "missing required field `measured_on`"),
        (b'{"maxima": {}, "measured_on": [], "more": 1}', "unknown field `more`"),
        (b'{"maxima": {"middle": {}}, "measured_on": []}', "Invalid enum value 'middle'"),
        (b'{"maxima": {"decoder": {"a": "1"}}, "measured_on": []}', "Expected `float | null`, got `str`"),
    ],
)
def test_what_is_refused(data: bytes, fault: str) -> None:
    with pytest.raises(BundleError) as raised:
        decode_calibration(data)
    assert "calibration.json cannot be used: " in str(raised.value)
    assert fault in str(raised.value)


MEMORY = """
import resource, sys
import numpy as np, onnx_ir as ir, onnxruntime
from vaedeploy.numerics.maxima import measure_maxima
x = {"x": np.ones((1, 4_000_000), np.float32)}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
measure_maxima(sys.argv[1], [x])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="resource gives KiB on Linux only")
def test_memory_is_bounded(tmp_path: Path) -> None:
    """64 tensors of 16 MB, of which a run needs two or three at a time: in the default order it took over 1 GB."""
    nodes = [helper.make_node("Sin", [f"h{i}" if i else "x"], [f"h{i + 1}" if i < 63 else "y"]) for i in range(64)]
    ir.save(chain(nodes), tmp_path / "chain.onnx")
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, tmp_path / "chain.onnx"], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) * 1024 < 200e6

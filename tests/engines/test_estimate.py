"""The memory that is foretold is the memory that TensorRT-RTX plans, within a quarter."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from vaedeploy.bundle import Bundle
from vaedeploy.bundle.engines import engine_name
from vaedeploy.engines.estimate import PLAN_OVERHEAD, check_memory, estimate_memory
from vaedeploy.engines.profile import Profile, get_profile, profiles
from vaedeploy.errors import InputError
from vaedeploy.graph.graph import Inputs, load_graph
from vaedeploy.graph.trace import trace_graph
from vaedeploy.rewrite import rewrite_graph
from vaedeploy.source import load_reference
from vaedeploy.values.kinds import Part

CHANNELS = 8
CONV = helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1])
LAST = helper.make_node("Conv", ["z", "w"], ["y"], pads=[1, 1, 1, 1])


def graph(*nodes: onnx.NodeProto) -> ir.Model:
    """x (batch, 8, height, width) -> ``nodes``, between two convolutions a = Conv(x) and y = Conv(z)."""
    shape = ["batch", CHANNELS, "height", "width"]
    weights = {
        "w": np.ones((CHANNELS, CHANNELS, 3, 3), np.float32),
        "ones": np.ones(CHANNELS, np.float32),
        "rows": np.array([0, CHANNELS, -1]),
    }
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy"]
    made = helper.make_graph(
        [CONV, *nodes, LAST],
        "g",
        values[:1],
        values[1:],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return ir.from_proto(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


def tensors(model: ir.Model, *, single: bool = False) -> float:
    """The estimate of activations at 2 x 16 x 32, in tensors of x's size."""
    found = estimate_memory(model, {"batch": 2, "height": 16, "width": 32}, single=single)
    return found.activations / (2 * CHANNELS * 16 * 32 * 4)


def node(operator: str, given: list[str], made: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(operator, given, [made], **attributes)


def test_inputs_and_outputs_are_the_callers() -> None:
    assert tensors(graph(node("Identity", ["a"], "z"))) == 1


def test_pointwise_operators_keep_the_last_of_a_chain() -> None:
    chain = [node("Relu", ["a"], "b"), node("Sigmoid", ["b"], "c"), node("Neg", ["c"], "z")]
    assert tensors(graph(*chain)) == 2


def test_what_is_added_later_lives_till_then() -> None:
    assert tensors(graph(node("Conv", ["a", "w"], "b", pads=[1] * 4), node("Add", ["a", "b"], "z"))) == 3


def test_a_normalisations_input_lives_until_the_chain_behind_it_is_done() -> None:
    norm = node("InstanceNormalization", ["a", "ones", "ones"], "n")
    chain = [norm, node("Sigmoid", ["n"], "s"), node("Mul", ["n", "s"], "z")]
    assert tensors(graph(*chain)) == 3


def attention() -> ir.Model:
    """Tokens are channels, so scores are 8 x 8 for each item."""
    return graph(
        node("Shape", ["a"], "size"),
        node("Reshape", ["a", "rows"], "q"),
        node("Transpose", ["q"], "t", perm=[0, 2, 1]),
        node("MatMul", ["t", "q"], "scores"),
        node("Softmax", ["scores"], "p", axis=-1),
        node("MatMul", ["q", "p"], "v"),
        node("Reshape", ["v", "size"], "z"),
    )


def test_attention_keeps_its_scores_and_for_several_sizes_a_reserve() -> None:
    """At 16 x 32 there are 512 x 512 scores for each item: 64 times as many as elements of one channel's picture."""
    scores = 512 * 512 / (CHANNELS * 16 * 32)
    several, single = tensors(attention()), tensors(attention(), single=True)
    assert several == single + 1
    assert single >= 2 * scores


def test_weights_are_a_part_of_the_plan() -> None:
    found = estimate_memory(graph(node("Relu", ["a"], "z")), {"batch": 1, "height": 1, "width": 1}, single=True)
    weights = CHANNELS * CHANNELS * 9 * 4 + CHANNELS * 4 + 3 * 8
    assert found.engine == int(weights * PLAN_OVERHEAD)
    assert found.total == found.engine + found.activations


def test_a_size_that_is_missing() -> None:
    with pytest.raises(InputError, match="the inputs' dimensions are batch, height, width"):
        estimate_memory(graph(node("Relu", ["a"], "z")), {"batch": 1}, single=True)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_of_the_full_size_architecture(full_size_bundle: Bundle, part: Part) -> None:
    """Against what TensorRT-RTX 1.7.1 says of the full-size engines: within 25 % at each of a profile's sizes."""
    name = engine_name("rtx4090", part, "tensorrt-rtx")
    info = full_size_bundle.manifest.engines[name]
    portable = load_graph(full_size_bundle.graph(part), part)
    inputs = Inputs(rewrite_graph(portable, "tensorrt", "fp16").graph, full_size_bundle.manifest.latent.factor)
    assert info.activation_bytes.keys() == get_profile("rtx4090").shapes.keys()
    for size, said in info.activation_bytes.items():
        sizes = inputs.sizes(*info.identity.shapes[size].at("max"))
        count = len(info.activation_bytes)
        found = estimate_memory(inputs.graph.model, sizes, single=False, shape_sets=count)
        assert found.activations == pytest.approx(said, rel=0.25), size
        assert found.engine == pytest.approx(full_size_bundle.manifest.files[name].bytes, rel=0.25)


def smallest_gpus() -> Collection[Profile]:
    """For each set of shapes that shipped profiles have, that with the least memory."""
    found: dict[str, Profile] = {}
    for profile in sorted(profiles().values(), key=lambda profile: profile.memory_gib):
        found.setdefault(str(profile.shapes), profile)
    return found.values()


@pytest.mark.slow
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_the_shipped_sizes_fit_every_gpu(full_size_bundle: Bundle, part: Part) -> None:
    portable = load_graph(full_size_bundle.graph(part), part)
    inputs = Inputs(rewrite_graph(portable, "tensorrt", "fp16").graph, 8)
    for profile in smallest_gpus():
        check_memory(profile, inputs)


@pytest.mark.full
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_the_shipped_sizes_fit_every_gpu_with_16_channels(part: Part) -> None:
    portable = trace_graph(load_reference("flux1", "random:0"), part)
    inputs = Inputs(rewrite_graph(portable, "tensorrt", "fp16").graph, 8)
    for profile in smallest_gpus():
        check_memory(profile, inputs)

"""The inputs that an optimised graph is proved on: given, or made."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from upsamplers import LATENT, interface, latents, upsampler

from vaedeploy.errors import InputError
from vaedeploy.pipeline.optimize import optimize_onnx
from vaedeploy.pipeline.optimize.inputs import choose_sizes, dimensions, parse_sizes, random_feed
from vaedeploy.pipeline.optimize.source import read_source

# --------------------------------------------------------------------------------------------------- sizes, inputs


@pytest.mark.parametrize(
    ("shape", "typical", "small"),
    [
        (LATENT, {"batch": 1, "height": 64, "width": 64}, {"batch": 1, "height": 8, "width": 8}),
        (("n", "c", "h", "w"), {"n": 1, "c": 4, "h": 64, "w": 64}, {"n": 1, "c": 4, "h": 8, "w": 8}),
        ((None, 4, "size", "size"), {"latent.0": 1, "size": 64}, {"latent.0": 1, "size": 8}),
        (("batch size", 4, "h", 16), {"batch size": 1, "h": 64}, {"batch size": 1, "h": 8}),
        ((1, 4, 8, 8), {}, {}),
    ],
)
def test_sizes_that_are_not_given(tmp_path, shape, typical, small):
    source = upsampler(tmp_path / "in.onnx", shape=shape)
    model = read_source(source).model
    assert choose_sizes(model, {}) == typical
    assert choose_sizes(model, {}, "small") == small
    assert len({(d.value, d.axis) for d in dimensions(model)}) == sum(not isinstance(dim, int) for dim in shape)
    optimized = optimize_onnx(source, tmp_path / "out.onnx")
    assert optimized.sizes == typical
    assert optimized.differences
    assert interface(tmp_path / "out.onnx") == interface(source)


def test_a_picture_is_taken_larger_than_a_latent():
    picture = ir.Value(name="image", shape=ir.Shape(["b", 3, "h", "w"]), type=ir.TensorType(ir.DataType.FLOAT))
    model = ir.Model(ir.Graph([picture], [], nodes=[]), ir_version=10)
    assert choose_sizes(model, {"w": 96}) == {"b": 1, "h": 512, "w": 96}
    feed = random_feed(model, choose_sizes(model, {}, "small"))
    assert feed["image"].shape == (1, 3, 64, 64)
    assert np.abs(feed["image"]).max() <= 1


@pytest.mark.parametrize(
    ("name", "type", "shape", "side"),
    [
        ("image", ir.DataType.FLOAT, ("b", 4, "h", "w"), 64),
        ("image_u8", ir.DataType.UINT8, ("b", "h", "w", 4), 64),
        ("x", ir.DataType.UINT8, ("b", "h", "w", 4), 64),
        ("latent", ir.DataType.FLOAT, ("b", 4, "h", "w"), 8),
        ("image", ir.DataType.FLOAT, ("b", 16, "h", "w"), 8),
    ],
)
def test_four_channels_are_a_latent_unless_the_input_says_that_it_is_an_image(name, type, shape, side):
    value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(type))
    model = ir.Model(ir.Graph([value], [], nodes=[]), ir_version=10)
    sizes = choose_sizes(model, {}, "small")
    assert sizes == {"b": 1, "h": side, "w": side}
    feed = random_feed(model, sizes)
    if type == ir.DataType.FLOAT:
        assert (np.abs(feed[name]).max() <= 1) == (side == 64)


def test_the_height_of_an_image_with_its_channels_last_is_no_number_of_channels():
    image = ir.Value(name="image_u8", shape=ir.Shape(["b", "h", "w", 3]), type=ir.TensorType(ir.DataType.UINT8))
    weight = ir.Value(name="weight", const_value=ir.tensor(np.zeros((4, 3, 1, 1), np.float32)))
    turned = ir.node("Transpose", [image], {"perm": [0, 3, 1, 2]})
    conv = ir.node("Conv", [turned.outputs[0], weight])
    graph = ir.Graph([image], conv.outputs, nodes=[turned, conv], initializers=[weight])
    assert choose_sizes(ir.Model(graph, ir_version=10), {}) == {"b": 1, "h": 512, "w": 512}


@pytest.mark.parametrize(
    "text", ["height", "height=", "=8", "height=0", "height=-8", "height=8.5", "height=x", "h=" + "9" * 5000]
)
def test_sizes_in_another_form(text):
    with pytest.raises(InputError, match=r"is not a size: give NAME=NUMBER, such as height=64"):
        parse_sizes([text])


def test_an_unknown_dimension(tmp_path):
    with pytest.raises(
        InputError, match=r"^there is no dimension 'depth'; the inputs' dimensions are batch, height, wid"
    ):
        optimize_onnx(upsampler(tmp_path / "in.onnx"), tmp_path / "out.onnx", sizes={"depth": 8})


def numbers(*shape: int, dtype=np.float32) -> np.ndarray:
    return np.ones(shape, dtype)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"z": numbers(1, 4, 8, 8)}, "has the tensors z; the graph's inputs are latent"),
        (
            {"latent": numbers(1, 4, 8, 8), "z": numbers(1)},
            "has the tensors latent, z; the graph's inputs are latent",
        ),
        (
            {"latent": numbers(1, 3, 8, 8)},
            "has latent of shape (1, 3, 8, 8); the graph takes (batch, 4, height, width)",
        ),
        ({"latent": numbers(4, 8, 8)}, "has latent of shape (4, 8, 8); the graph takes (batch, 4, height, width)"),
        ({"latent": numbers(1, 4, 8, 8, dtype=np.int64)}, "has latent as int64; the graph takes float"),
        ({"latent": numbers(1, 4, 8, 8) * np.nan}, "has NaN or infinity in latent"),
    ],
)
def test_inputs_that_do_not_fit(tmp_path, tensors, message):
    given = latents(tmp_path / "z.safetensors", **tensors)
    with pytest.raises(InputError) as error:
        optimize_onnx(upsampler(tmp_path / "in.onnx"), tmp_path / "out.onnx", inputs=[given])
    assert str(error.value) == f"{given} {message}"


def test_inputs_that_cannot_be_read(tmp_path):
    source = upsampler(tmp_path / "in.onnx")
    with pytest.raises(InputError, match=r"^there is no file .*missing\.safetensors$"):
        optimize_onnx(source, tmp_path / "out.onnx", inputs=[tmp_path / "missing.safetensors"])
    (tmp_path / "text").write_text("no tensors")
    with pytest.raises(InputError, match="text is not a safetensors file that can be used: "):
        optimize_onnx(source, tmp_path / "out.onnx", inputs=[tmp_path / "text"])


def test_inputs_of_another_float_type_are_converted(tmp_path):
    given = latents(tmp_path / "z.safetensors", latent=numbers(1, 4, 8, 8, dtype=np.float16))
    optimized = optimize_onnx(upsampler(tmp_path / "in.onnx"), tmp_path / "out.onnx", inputs=[given])
    assert optimized.compared_on == "1 x --inputs"
    assert optimized.differences

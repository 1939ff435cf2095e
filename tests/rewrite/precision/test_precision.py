"""A half-precision graph as a whole: its interface, its error, and real VAEs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import onnx_ir as ir
import pytest
import torch
from examples import at_most
from exporters import Decoder, export_decoder
from hypothesis import given
from hypothesis import strategies as st
from lowered import (
    DTYPE,
    LOWER,
    PRECISIONS,
    UNIT,
    between_convolutions,
    checked,
    emulated,
    node,
    normal,
    rel_l2,
    run,
    wide_nodes,
)

from vaedeploy.bundle import Bundle
from vaedeploy.errors import InputError
from vaedeploy.graph.graph import load_graph, save_graph
from vaedeploy.graph.trace import trace_graph
from vaedeploy.images.photos import load_photos
from vaedeploy.images.pixels import to_levels
from vaedeploy.rewrite.precision import lower_precision
from vaedeploy.source import load_reference
from vaedeploy.values.reference import Reference
from vaedeploy.verify.limits import LIMITS

# What is lowered


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_traced_vae(tiny_graphs: Path, part: Any, precision: str) -> None:
    """The latent contract and what turns floats to bytes are float32; the rest is not."""
    model = load_graph(tiny_graphs / f"{part}.onnx", part).model
    weights = {n: v.const_value.numpy().copy() for n, v in model.graph.initializers.items()}
    result = checked(model, precision)
    wide = Counter(n.op_type for n in model.graph if n.name in wide_nodes(model))
    if part == "decoder":
        latent, levels = {"Div": 1, "Add": 1}, {"Add": 1, "Mul": 1, "Round": 1, "Clip": 1, "Transpose": 1}
        finite = {"IsInf": 1, "IsNaN": 1, "ReduceSum": 1, "Equal": 1}  # reads the image, and counts
        scales = {"Resize": 2}
        assert wide == sum(map(Counter, (latent, levels, finite, scales)), Counter())
    else:  # exp(logarithm / 2); (mean - shift) * scale; std * |scale|
        assert wide == {"Exp": 1, "Sub": 1, "Mul": 3}
    lowered_nodes = [n for n in model.graph if n.op_type != "Cast" and n.outputs[0].dtype == LOWER[precision]]
    assert result.outcome.matches == len(lowered_nodes) > 15
    assert result.outcome.refusals == ()
    lowered = [n for n, v in model.graph.initializers.items() if v.dtype == LOWER[precision]]
    assert len([n for n in weights if n.endswith(("weight", "bias")) and n in lowered]) >= 6
    for name in lowered:
        once = weights[name].astype(DTYPE[precision])
        assert model.graph.initializers[name].const_value.numpy().tobytes() == once.tobytes()
    assert model.opset_imports[""] == (22 if precision == "bf16" else 20)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_half_precision_interface(tiny_graphs: Path, part: Any, precision: str) -> None:
    model, other = (load_graph(tiny_graphs / f"{part}.onnx", part).model for _ in range(2))
    checked(model, precision, inputs_outputs="lower")
    checked(other, precision)
    x = normal((1, 4, 6, 5) if part == "decoder" else (1, 3, 24, 20))
    x = x.astype(DTYPE[precision]).astype(np.float32)  # so that both are given the same
    found, expected = emulated(model, x), emulated(other, x)
    for name, value in expected.items():  # the same but for the last rounding
        rounded = value.astype(DTYPE[precision]).astype(np.float32) if value.dtype == np.float32 else value
        np.testing.assert_array_equal(found[name], rounded)


@at_most(20)
@given(
    precision=st.sampled_from(PRECISIONS),
    batch=st.integers(1, 3),
    height=st.integers(2, 7),
    width=st.integers(2, 7),
    seed=st.integers(0, 2**31),
    std=st.sampled_from([0.01, 1.0, 100.0]),
)
def test_error_is_that_of_a_few_roundings(
    precision: str, batch: int, height: int, width: int, seed: int, std: float
) -> None:
    """Conv, SiLU, Conv against float64: an error of a few roundings, relative to the sums of magnitudes."""
    rng = np.random.default_rng(seed)
    first, last = (rng.normal(size=(4, 4, 3, 3)).astype(np.float32) for _ in range(2))
    pads = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    model = between_convolutions(node("Sigmoid", "a", "s"), node("Mul", "a s", "z"), first=first, last=last)
    for conv in (n for n in model.graph if n.op_type == "Conv"):
        conv.attributes.update({k: ir.AttrInt64s(k, v) for k, v in pads.items()})
    x = normal((batch, 4, height, width), 0, std, seed)

    def layer(value: np.ndarray, kernel: np.ndarray) -> np.ndarray:
        return torch.nn.functional.conv2d(*map(torch.from_numpy, (value, kernel.astype(np.float64))), padding=1).numpy()

    a = layer(x.astype(np.float64), first)
    expected = layer(a * (1 + np.tanh(a / 2)) / 2, last)
    checked(model, precision)
    # x, kernel, a, sigmoid, product, kernel and y are rounded; an error in a passes SiLU at most 1.1-fold.
    magnitude = layer(np.abs(layer(np.abs(x).astype(np.float64), np.abs(first))), np.abs(last))
    allowed = 8 * UNIT[precision] * magnitude + 1e-6
    assert np.all(np.abs(emulated(model, x)["y"] - expected) <= allowed)


ERRORS = {
    "precision is 'int8'; it must be one of fp16, bf16": {"precision": "int8"},
    "inputs_outputs is 'fp16'; it must be one of fp32, lower": {"inputs_outputs": "fp16"},
    "normalization is 'none'; it must be one of native, fp32": {"normalization": "none"},
    "keep_fp32 names 'nowhere', and the graph has no node of that name": {"keep_fp32": ["a_node", "nowhere"]},
}


@pytest.mark.parametrize(("message", "options"), ERRORS.items(), ids=ERRORS)
def test_bad_options(message: str, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"^{message}$"):
        lower_precision(between_convolutions(node("Relu", "a", "z")), **{"precision": "fp16", **options})


def test_a_graph_that_is_lowered_already() -> None:
    model = between_convolutions(node("Relu", "a", "z"))
    lower_precision(model, "fp16")
    with pytest.raises(InputError, match="is FLOAT16; only a graph whose floating-point tensors are all float32 can"):
        lower_precision(model, "fp16")


DIFFUSERS = {
    "AutoencoderKL": {
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "block_out_channels": (8, 8),
        "norm_num_groups": 4,
        "layers_per_block": 1,
    },
    "AutoencoderTiny": {
        "encoder_block_out_channels": (8,) * 2,
        "decoder_block_out_channels": (8,) * 2,
        "num_encoder_blocks": (1,) * 2,
        "num_decoder_blocks": (1,) * 2,
    },
    "AutoencoderDC": {
        "latent_channels": 4,
        "attention_head_dim": 4,
        "upsample_block_type": "interpolate",
        **{
            f"{part}_{name}": value
            for part in ("encoder", "decoder")
            for name, value in {
                "block_types": ("ResBlock",) * 2,
                "block_out_channels": (8, 16),
                "layers_per_block": (1, 1),
                "qkv_multiscales": ((), ()),
            }.items()
        },
    },
}


EXPORTS = [
    ("AutoencoderTiny", 17),
    ("AutoencoderKL", 17),
    # Not AutoencoderDC: the graph that TorchScript writes of it, with a permutation of -1, does not load.
    *(pytest.param(architecture, 18, marks=pytest.mark.slow) for architecture in DIFFUSERS),
]


@pytest.mark.parametrize(("architecture", "opset"), EXPORTS)
def test_decoders_of_diffusers(architecture: str, opset: int, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        decoder = Decoder(getattr(diffusers, architecture)(**DIFFUSERS[architecture])).eval()
    export_decoder(decoder, tmp_path / "plain.onnx", opset)
    x = normal((1, 4, 7, 4))
    (expected,) = run(tmp_path / "plain.onnx", x).values()
    for precision in PRECISIONS:
        model = ir.load(tmp_path / "plain.onnx")
        assert checked(model, precision).outcome.refusals == ()
        (found,) = emulated(model, x).values()
        assert rel_l2(found, expected) < LIMITS[precision][0].bound


# Whole VAEs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "vae"),
    [
        *(pytest.param(precision, "full_size_bundle", marks=pytest.mark.full) for precision in PRECISIONS),
        *((precision, "demo_bundle") for precision in PRECISIONS),
    ],
)
def test_whole_vaes_are_within_the_limits(request: pytest.FixtureRequest, vae: str, precision: Any) -> None:
    """On a photograph of 128x128 and its latent, against the float32 graph, in the form that keeps its digits."""
    bundle: Bundle = request.getfixturevalue(vae)
    limits = {limit.metric: limit for limit in LIMITS[precision]}
    photo = load_photos()[0][192:320, 192:320].transpose(2, 0, 1)[None]
    x = {"encoder": (photo / 127.5 - 1).astype(np.float32)}
    for part in ("encoder", "decoder"):
        expected = run(bundle.graph(part, "onnxruntime"), x[part])
        x.setdefault("decoder", expected.get("latent_mean"))
        model = load_graph(bundle.graph(part), part).model
        checked(model, precision)
        found = emulated(model, x[part])
        for name in (n for n in expected if expected[n].dtype == np.float32):
            assert limits["rel_l2"].allows(rel_l2(found[name], expected[name])), name
    levels = np.abs(found["image_u8"].astype(int) - to_levels(expected["image"]))
    if "within_one_level" in limits:
        assert limits["within_one_level"].allows(float(np.mean(levels <= 1)))
    else:
        assert limits["psnr"].allows(float(10 * np.log10(255**2 / np.mean(levels**2.0))))
    assert found["finite"].tolist() == [True]


def inflate(reference: Reference, exponent: int, first: int) -> None:
    """Make the decoder's stream ``2**exponent`` times as large, and leave its image as it is.

    The first convolution takes up to ``first`` of the exponent, so that its weights stay in float16's range, and the
    one before it the rest. Everything that reads the stream is linear or normalises it.
    """
    factor = 2.0**exponent
    vae = reference.decoder
    decoder = vae.decoder

    def scale(layer: Any, weight: float, bias: float) -> None:
        layer.weight.mul_(weight)
        layer.bias.mul_(bias)

    with torch.no_grad():
        scale(vae.post_quant_conv, factor / 2.0**first, factor / 2.0**first)
        scale(decoder.conv_in, 2.0**first, factor)
        blocks = [*decoder.mid_block.resnets, *(r for up in decoder.up_blocks for r in up.resnets)]
        for block in blocks:
            scale(block.conv2, factor, factor)
            block.norm1.eps *= factor**2
            if block.conv_shortcut is not None:
                scale(block.conv_shortcut, 1, factor)
        for attention in decoder.mid_block.attentions:
            scale(attention.to_out[0], factor, factor)
            attention.group_norm.eps *= factor**2
        for up in decoder.up_blocks:
            for upsampler in up.upsamplers or []:
                scale(upsampler.conv, 1, factor)
        decoder.conv_norm_out.eps *= factor**2


@pytest.mark.slow
def test_an_inflated_vae_is_black_under_emulation(small_vae: Path, tmp_path: Path) -> None:
    """Its stream is 2**17 times as large: the same image to the last bit in float32, none in float16."""
    reference = load_reference(small_vae)
    latent = normal((1, 4, 8, 8))
    save_graph(trace_graph(reference, "decoder"), tmp_path / "plain.onnx")
    expected = run(tmp_path / "plain.onnx", latent)["image"]
    inflate(reference, 17, first=12)
    save_graph(trace_graph(reference, "decoder"), tmp_path / "inflated.onnx")
    np.testing.assert_array_equal(run(tmp_path / "inflated.onnx", latent)["image"], expected)
    model = load_graph(tmp_path / "inflated.onnx", "decoder").model
    checked(model)
    found = emulated(model, latent)
    assert np.isnan(found["image"]).all()
    assert found["finite"].tolist() == [False]

"""Whole networks rescaled: the same bit for bit, whoever exported them."""

from __future__ import annotations

import math
from itertools import cycle
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from examples import at_most
from exporters import Decoder, export_decoder
from hypothesis import given
from hypothesis import strategies as st
from scaled import (
    HELD,
    LIMIT,
    check_made_up_maxima,
    draw,
    float64,
    overflowing,
    rescaled,
    residual,
    run_file,
)

from vaedeploy.graph.graph import save_graph
from vaedeploy.graph.trace import trace_graph
from vaedeploy.numerics.maxima import measure_maxima
from vaedeploy.rewrite.rescale import rescale
from vaedeploy.source import load_reference
from vaedeploy.testing.inflation import INFLATIONS, inflate
from vaedeploy.values.kinds import Part


@at_most(30)
@given(data=st.data(), shape=st.tuples(st.integers(1, 2), st.just(4), st.integers(2, 7), st.integers(2, 7)))
def test_any_residual_network(data: st.DataObject, shape: tuple[int, ...]) -> None:
    model = residual(data, data.draw(st.sampled_from([20, 21]), "opset"))
    x = {"x": draw(shape, 3)}
    new, result = rescaled(model, x)
    # Nothing but what a non-linearity sees is out of reach, and that is normalised here.
    assert result.keep_fp32 == frozenset()
    assert overflowing(new, x) == []
    wide = {"x": x["x"].astype(np.float64)}
    np.testing.assert_array_equal(float64(new).run(None, wide)[0], float64(model).run(None, wide)[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "inflation", "part"),
    [
        ("small", "2^17 everywhere", "encoder"),
        ("small", "2^17 everywhere", "decoder"),
        ("small", "not powers of two", "decoder"),
        pytest.param("full", "not powers of two", "encoder", marks=pytest.mark.full),
        pytest.param("full", "not powers of two", "decoder", marks=pytest.mark.full),
    ],
)
def test_an_inflated_vae_is_repaired(part: Part, size: str, inflation: str, small_vae: Path, tmp_path: Path) -> None:
    """The same bit for bit, everything fits, nothing is left in fp32."""
    reference = load_reference(small_vae) if size == "small" else load_reference("mse840k", weights="random:0")
    half = getattr(reference, part)
    shape = (1, 4, 8, 12) if part == "decoder" else (1, 3, 64, 96)
    x = draw(shape) if part == "decoder" else draw(shape).clip(-1, 1)
    before = half(torch.from_numpy(x))
    inflate(half, *map(cycle, INFLATIONS[inflation]))
    # The same function, in other roundings: factors that are no powers of two cost a few digits of a float32.
    for found, expected in zip(as_tuple(half(torch.from_numpy(x))), as_tuple(before), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)
    traced = trace_graph(reference, part)
    feed = {traced.model.graph.inputs[0].name: x}
    maxima = measure_maxima(traced.model, [feed])
    assert sum(m > LIMIT for m in maxima.values()) > 20
    save_graph(traced, tmp_path / "inflated.onnx")
    model = ir.load(tmp_path / "inflated.onnx")
    result = rescale(model, maxima)
    assert (result.outcome.refusals, result.keep_fp32) == ((), frozenset())
    ir.save(model, tmp_path / "rescaled.onnx", external_data="rescaled.onnx.data")
    onnx.checker.check_model(tmp_path / "rescaled.onnx", full_check=True)
    for found, expected in zip(
        run_file(tmp_path / "rescaled.onnx", feed), run_file(tmp_path / "inflated.onnx", feed), strict=True
    ):
        np.testing.assert_array_equal(found, expected, strict=True)
    assert max(measure_maxima(tmp_path / "rescaled.onnx", [feed]).values()) <= HELD
    # Not reduced to nothing either: float16 has digits left for every tensor that was scaled.
    for component in result.components:
        assert component.exponent > 0 or math.ldexp(component.maximum, component.exponent) > 2**-4
    arrays = (value.const_value.numpy() for value in model.graph.initializers.values() if value.const_value is not None)
    assert max(np.abs(array).max() for array in arrays if array.dtype == np.float32) <= LIMIT


def as_tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


VAES: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "AutoencoderKL": (
        diffusers.AutoencoderKL,
        {
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
            "block_out_channels": (8, 16),
            "norm_num_groups": 4,
        },
    ),
    "AutoencoderTiny": (
        diffusers.AutoencoderTiny,
        {
            "encoder_block_out_channels": (8, 8),
            "decoder_block_out_channels": (8, 8),
            "num_encoder_blocks": (1, 1),
            "num_decoder_blocks": (1, 1),
        },
    ),
    "AutoencoderDC": (
        diffusers.AutoencoderDC,
        {
            "latent_channels": 4,
            "attention_head_dim": 16,  # with fewer, all may be negative before ReLU, and its attention 0 / 0
            "encoder_block_types": ("ResBlock", "EfficientViTBlock"),
            "decoder_block_types": ("ResBlock", "EfficientViTBlock"),
            "encoder_block_out_channels": (8, 32),
            "decoder_block_out_channels": (8, 32),
            "encoder_layers_per_block": (1, 1),
            "decoder_layers_per_block": (1, 1),
            "encoder_qkv_multiscales": ((), (5,)),
            "decoder_qkv_multiscales": ((), (5,)),
        },
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "opset"),
    # Not AutoencoderDC at 17: torch's TorchScript exporter writes its attention with an axis that ONNX does not have.
    [(name, opset) for name in VAES for opset in (17, 18, 21) if (name, opset) != ("AutoencoderDC", 17)],
)
def test_graphs_of_other_exporters(name: str, opset: int, tmp_path: Path) -> None:
    """Under maxima that are made up, so that nearly every tensor is scaled: the same bit for bit all the same."""
    torch.manual_seed(0)
    kind, config = VAES[name]
    module = Decoder(kind(**config).eval().requires_grad_(False))
    export_decoder(module, tmp_path / "plain.onnx", opset)
    check_made_up_maxima(tmp_path / "plain.onnx", {"latent": draw((1, 4, 8, 6))}, tmp_path / "rescaled.onnx")


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_tiny_traced_modules(tiny_graphs: Path, part: Part, tmp_path: Path) -> None:
    x = draw((1, 4, 5, 7)) if part == "decoder" else draw((1, 3, 16, 24)).clip(-1, 1)
    feed = {"latent" if part == "decoder" else "image": x}
    check_made_up_maxima(tiny_graphs / f"{part}.onnx", feed, tmp_path / "rescaled.onnx")

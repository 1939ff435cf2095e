"""Anybody's ONNX graph, rewritten and compared with what it was."""

from __future__ import annotations

import io
import json
import logging
import math
import warnings
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from onnx import helper
from upsamplers import digests, interface, latents, upsampler

from vaedeploy.cli.tables.optimize import MOST_REASONS, rule_rows
from vaedeploy.errors import InputError
from vaedeploy.pipeline.optimize import NOT_MEASURED, optimize_onnx
from vaedeploy.pipeline.optimize.proof import run_both
from vaedeploy.rewrite import Outcome, Refusal

# ------------------------------------------------------------------------------------------------- what comes out


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_the_graph_is_rewritten_and_the_source_stays(tmp_path, target):
    source = upsampler(tmp_path / "in.onnx")
    before = digests(tmp_path)
    optimized = optimize_onnx(source, tmp_path / "out.onnx", target=target)
    after = digests(tmp_path)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"out.onnx", "out.onnx.data"}
    assert interface(tmp_path / "out.onnx") == interface(source)
    onnx.checker.check_model(tmp_path / "out.onnx", full_check=True)
    assert {o.rule: o.matches for o in optimized.outcomes}["fold_upsampling"] == 1
    (difference,) = optimized.differences
    # float32 rounds to 6e-8, and a sum of 72 products to a few times that; the same graph would give 0.
    assert (difference.output, difference.type) == ("image", "float32")
    assert 0 < difference.relative_l2 < 1e-6
    assert optimized.not_compared is None
    assert not optimized.warnings


def test_operations_follow_the_formula(tmp_path):
    optimized = optimize_onnx(upsampler(tmp_path / "in.onnx"), tmp_path / "out.onnx", sizes={"height": 16, "width": 24})
    assert optimized.sizes == {"batch": 1, "height": 16, "width": 24}
    first, second = 2 * 16 * 24 * 8 * 4 * 9, 2 * 32 * 48 * 3 * 8 * 9
    assert optimized.before.operations == first + second
    # A fold takes 4/9 of its convolution, and what its form pads besides, here at most a row and a column a phase.
    assert first + second * 4 / 9 <= optimized.after.operations < first + second * 4 / 9 * 1.2
    assert optimized.before.weight_bytes == 4 * (8 * 4 * 9 + 3 * 8 * 9 + 4)


def test_half_precision_without_inputs_says_that_nothing_was_measured(tmp_path):
    source = upsampler(tmp_path / "in.onnx", gain=3e4, last=1e-3)
    optimized = optimize_onnx(source, tmp_path / "out.onnx", target="tensorrt", precision="fp16")
    assert optimized.outcomes[0] == Outcome("rescale", 0, (Refusal("", NOT_MEASURED),))
    (difference,) = optimized.differences
    assert difference.not_finite > 0
    assert math.isnan(difference.relative_l2)
    assert optimized.warnings == (f"image has {difference.not_finite} numbers that are NaN or infinite",)
    assert [u.size for u in optimized.underflows] == [8 * 3 * 4 * 4]  # the transposed form's weight


def test_half_precision_with_inputs_is_scaled(tmp_path):
    source = upsampler(tmp_path / "in.onnx", gain=3e4, last=1e-3)
    given = [latents(tmp_path / "a.safetensors"), latents(tmp_path / "b.safetensors")]
    optimized = optimize_onnx(source, tmp_path / "out.onnx", target="tensorrt", precision="fp16", inputs=given)
    assert optimized.outcomes[0].rule == "rescale"
    assert optimized.outcomes[0].matches > 0
    assert optimized.compared_on == "2 x --inputs"
    assert interface(tmp_path / "out.onnx") == interface(source)
    # Half precision rounds to 5e-4, four times here.
    assert 0 < optimized.differences[0].relative_l2 < 2e-3
    assert optimized.after.weight_bytes < 0.8 * optimized.before.weight_bytes


def test_bfloat16(tmp_path):
    optimized = optimize_onnx(
        upsampler(tmp_path / "in.onnx"), tmp_path / "out.onnx", target="tensorrt", precision="bf16"
    )
    assert optimized.precision == "bf16"
    # bfloat16 rounds to 4e-3, four times here.
    assert 1e-4 < optimized.differences[0].relative_l2 < 1.6e-2


@pytest.mark.parametrize("precision", [None, "fp16"])
def test_a_graph_in_half_precision_stays_so(tmp_path, precision):
    source = upsampler(tmp_path / "in.onnx", dtype=np.float16)
    optimized = optimize_onnx(source, tmp_path / "out.onnx", precision=precision)
    assert optimized.precision == "fp16"
    lowering = [o for o in optimized.outcomes if o.rule.startswith("lower_precision")]
    expected = Outcome("lower_precision(fp16)", 0, (Refusal("", "the graph is fp16 already"),))
    assert lowering == ([expected] if precision else [])
    assert interface(tmp_path / "out.onnx") == interface(source)
    assert 0 < optimized.differences[0].relative_l2 < 2e-3  # both round to 5e-4 a few times


def test_operators_of_others_are_kept(tmp_path):
    source = upsampler(
        tmp_path / "in.onnx", extra=[helper.make_node("Glow", ["plain"], ["image"], domain="com.example")]
    )
    optimized = optimize_onnx(source, tmp_path / "out.onnx")
    nodes = onnx.load(tmp_path / "out.onnx", load_external_data=False).graph.node
    assert [(node.domain, node.op_type) for node in nodes][-1] == ("com.example", "Glow")
    assert "fold_upsampling" in {o.rule for o in optimized.outcomes if o.matches}
    assert "ONNX Runtime cannot load" in optimized.not_compared
    assert not optimized.differences


def test_a_graph_that_no_cpu_runs_is_not_compared(tmp_path):
    source = upsampler(tmp_path / "in.onnx", shape=(1, 4, 6, 10))
    given = latents(tmp_path / "latent.safetensors")
    optimized = optimize_onnx(
        source, tmp_path / "out.onnx", target="onnxruntime-cuda", precision="fp16", inputs=[given]
    )
    assert optimized.not_compared == (
        "no CPU runs its fused operators: compare both graphs with ONNX Runtime's CUDA provider, on a GPU"
    )
    assert (optimized.differences, optimized.warnings) == ((), ())
    assert interface(tmp_path / "out.onnx") == interface(source)
    rules = {o.rule: o.matches for o in optimized.outcomes}
    assert (rules["fold_upsampling_last"], rules["turn_channels_last"], rules["align_channels"]) == (1, 1, 5)
    # Channels are filled up to 8: the first convolution has 8 inputs and not 4, each phase 8 outputs and not 3.
    first, phases = 2 * 6 * 10 * 8 * 8 * 9, 4 * (2 * 6 * 10 * 8 * 8 * 4)
    assert (optimized.after.operations, optimized.after.uncounted) == (first + phases, ())


@pytest.mark.parametrize(
    ("precision", "dtype", "reason"),
    [
        (None, np.float32, "give --precision fp16"),
        ("fp32", np.float32, "give --precision fp16"),
        ("bf16", np.float32, "give --precision fp16"),
        ("fp16", np.float16, "and {source} is fp16 already"),
    ],
)
def test_the_fused_form_is_fp16_of_fp32(tmp_path, precision, dtype, reason):
    source = upsampler(tmp_path / "in.onnx", dtype=dtype)
    with pytest.raises(InputError) as refused:
        optimize_onnx(source, tmp_path / "out.onnx", target="onnxruntime-cuda", precision=precision)
    start = "--target onnxruntime-cuda makes an fp16 graph of an fp32 one: "
    assert str(refused.value) == start + reason.format(source=source)
    assert not list(tmp_path.glob("out*"))


def test_a_graph_that_draws_is_not_compared(tmp_path):
    noise = [
        helper.make_node("RandomNormalLike", ["plain"], ["noise"], "noise"),
        helper.make_node("Add", ["plain", "noise"], ["image"], "add"),
    ]
    optimized = optimize_onnx(upsampler(tmp_path / "in.onnx", extra=noise), tmp_path / "out.onnx")
    assert optimized.not_compared == (
        "the graph draws random numbers (RandomNormalLike), so that no two runs give the same"
    )


def test_sizes_in_another_file_are_read(tmp_path):
    optimized = optimize_onnx(upsampler(tmp_path / "in.onnx", kept=0), tmp_path / "out.onnx")
    assert not optimized.before.uncounted
    assert "Cannot parse data from external tensors" in optimized.not_compared  # ONNX Runtime's limit


def test_functions_are_inlined(tmp_path):
    source = upsampler(
        tmp_path / "in.onnx", extra=[helper.make_node("Glow", ["plain"], ["image"], domain="com.example")]
    )
    model = onnx.load(source)
    body = [helper.make_node("Relu", ["x"], ["y"])]
    imports = [helper.make_opsetid("", 20)]
    model.functions.append(helper.make_function("com.example", "Glow", ["x"], ["y"], body, imports))
    onnx.save(model, source)
    optimized = optimize_onnx(source, tmp_path / "out.onnx")
    assert "Relu" in {node.op_type for node in onnx.load(tmp_path / "out.onnx").graph.node}
    assert optimized.differences[0].relative_l2 < 1e-6  # as above


def test_a_graph_that_changed_is_told(tmp_path):
    feeds = [{"latent": np.ones((1, 4, 8, 8), np.float32)}]
    one, other = upsampler(tmp_path / "one.onnx"), upsampler(tmp_path / "other.onnx", last=1.5)
    (difference,) = run_both(one, other, feeds)
    assert difference.relative_l2 == pytest.approx(0.5, rel=1e-5)  # float32


# ----------------------------------------------------------------------------------------------------- exporters


def export(module: torch.nn.Module, example: torch.Tensor, path: Path, opset: int, dynamo: bool) -> Path:
    logging.disable(logging.WARNING)
    names = {"input_names": ["given"], "output_names": ["result"], "opset_version": opset}
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            if dynamo:
                dynamic = {"dynamic_shapes": (dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC),)}
            else:
                dynamic = {"dynamic_axes": {"given": {0: "batch", 2: "height", 3: "width"}}}
            torch.onnx.export(module, (example,), path, dynamo=dynamo, **names, **dynamic)
    finally:
        logging.disable(logging.NOTSET)
    return path


class Half(torch.nn.Module):
    def __init__(self, vae, part: str) -> None:
        super().__init__()
        self.vae, self.part = vae, part

    def forward(self, given):
        if self.part == "decoder":
            return self.vae.decode(given, return_dict=False)[0]
        (encoded,) = self.vae.encode(given, return_dict=False)
        return encoded if isinstance(encoded, torch.Tensor) else encoded.mean


def half(architecture: str, part: str) -> Half:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if architecture == "kl":
            vae = AutoencoderKL(
                block_out_channels=(8, 16),
                down_block_types=["DownEncoderBlock2D"] * 2,
                up_block_types=["UpDecoderBlock2D"] * 2,
                norm_num_groups=4,
            )
        else:
            vae = AutoencoderTiny(
                encoder_block_out_channels=(8, 8),
                decoder_block_out_channels=(8, 8),
                num_encoder_blocks=(1, 1),
                num_decoder_blocks=(1, 1),
            )
    return Half(vae.eval().requires_grad_(False), part)


EXPORTS = [
    pytest.param(
        architecture,
        part,
        opset,
        dynamo,
        marks=[*([pytest.mark.slow] if dynamo else []), *([pytest.mark.full] if opset == 20 else [])],
    )
    for architecture, part in (("kl", "decoder"), ("kl", "encoder"), ("tiny", "decoder"))
    for opset, dynamo in ((17, False), (18, True), (20, True), (21, True))
]


@pytest.mark.parametrize(("architecture", "part", "opset", "dynamo"), EXPORTS)
def test_graphs_of_every_exporter(tmp_path, architecture, part, opset, dynamo):
    example = torch.zeros(2, 4, 8, 12) if part == "decoder" else torch.zeros(2, 3, 16, 24)
    source = export(half(architecture, part), example, tmp_path / "in.onnx", opset, dynamo)
    for target in ("onnxruntime", "tensorrt"):
        optimized = optimize_onnx(source, tmp_path / f"{target}.onnx", target=target)
        matches = {outcome.rule: outcome.matches for outcome in optimized.outcomes}
        assert matches["fold_upsampling"] == (1 if part == "decoder" else 0)
        assert matches.get("chunk_attention", 1) == (1 if architecture == "kl" else 0) or target == "tensorrt"
        assert interface(tmp_path / f"{target}.onnx") == interface(source)
        # A few float32 roundings a layer, 6e-8 each, over thirty layers.
        assert optimized.differences[0].relative_l2 < 5e-6
        assert not optimized.after.uncounted
        assert (optimized.after.operations < optimized.before.operations) == (part == "decoder")
    lowered = optimize_onnx(source, tmp_path / "fp16.onnx", precision="fp16")
    assert interface(tmp_path / "fp16.onnx") == interface(source)
    assert 1e-6 < lowered.differences[0].relative_l2 < 5e-3  # half precision rounds to 5e-4; tens of layers


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_a_graph_exported_in_half_precision(tmp_path, target):
    module, example = half("kl", "decoder").to(torch.float16), torch.zeros(2, 4, 8, 12, dtype=torch.float16)
    source = export(module, example, tmp_path / "in.onnx", 20, True)
    optimized = optimize_onnx(source, tmp_path / "out.onnx", target=target)
    assert optimized.precision == "fp16"
    assert interface(tmp_path / "out.onnx") == interface(source)
    assert optimized.differences[0].relative_l2 < 5e-3  # both round to 5e-4, tens of times


def test_attention_in_a_loop_is_counted(tmp_path):
    attention = [
        helper.make_node("Constant", [], ["flat"], "flat", value_ints=[0, 3, -1]),
        helper.make_node("Reshape", ["plain", "flat"], ["keys"], "keys"),
        helper.make_node("Transpose", ["keys"], ["queries"], "queries", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["queries", "keys"], ["scores"], "scores"),
        helper.make_node("Softmax", ["scores"], ["shares"], "shares"),
        helper.make_node("MatMul", ["shares", "queries"], ["mixed"], "mixed"),
        helper.make_node("Transpose", ["mixed"], ["back"], "back", perm=[0, 2, 1]),
        helper.make_node("Shape", ["plain"], ["shape"], "shape"),
        helper.make_node("Reshape", ["back", "shape"], ["image"], "image"),
    ]
    source = upsampler(tmp_path / "in.onnx", extra=attention)
    found = {t: optimize_onnx(source, tmp_path / f"{t}.onnx", target=t) for t in ("onnxruntime", "tensorrt")}
    assert {o.rule: o.matches for o in found["onnxruntime"].outcomes}["chunk_attention"] == 1
    tokens = 128 * 128
    for optimized in found.values():  # with the loop, and without
        for figures in (optimized.before, optimized.after):
            assert figures.operations - figures.convolutions == 2 * tokens * tokens * (3 + 3)
            assert not figures.uncounted


# ---------------------------------------------------------------------------------------------------- what is said


def test_reasons_are_grouped(tmp_path):
    refusals = [Refusal(str(n), "small") for n in range(3)] + [Refusal("x", f"own {n}") for n in range(MOST_REASONS)]
    rows = rule_rows([Outcome("fold", 2, tuple(refusals)), Outcome("other", 0)])
    assert rows[0] == ("fold", "2", "3", "small")
    assert rows[1] == ("", "", "1", "own 0")
    assert rows[MOST_REASONS] == ("", "", "1", "for other reasons; --json has them all")
    assert rows[-1] == ("other", "0", "", "")


def test_the_command_line(vaedeploy, tmp_path):
    source = upsampler(tmp_path / "in.onnx")
    ended = vaedeploy("optimize", source, "-o", tmp_path / "out.onnx", "--sizes", "height=16", "--sizes", "width=16")
    assert ended.code == 0
    lines = ended.out.splitlines()
    assert lines[0].split() == ["rule", "matches", "left", "alone", "why"]
    assert "at batch=1, height=16, width=16" in ended.out
    assert "Compared on seeded random inputs, batch=1, height=8, width=8" in lines
    assert lines[-1] == f"Wrote {tmp_path / 'out.onnx'} (fp32, for onnxruntime)"


def test_the_command_line_warns_and_tells_what_was_lost(vaedeploy, tmp_path):
    source = upsampler(tmp_path / "in.onnx", gain=3e4, last=1e-3)
    ended = vaedeploy("optimize", source, "-o", tmp_path / "out.onnx", "--target", "tensorrt", "--precision", "fp16")
    assert ended.code == 0
    assert NOT_MEASURED in ended.out
    assert "Too small for fp16: 0 numbers of the weights became zero and" in ended.out
    assert "Warning: image has" in ended.err


def test_json_is_one_document(vaedeploy, tmp_path):
    source = upsampler(tmp_path / "in.onnx")
    ended = vaedeploy("optimize", source, "-o", tmp_path / "out.onnx", "--json")
    told = json.loads(ended.out)
    assert told["precision"] == "fp32"
    assert told["after"]["operations"] < told["before"]["operations"]
    assert [o["rule"] for o in told["outcomes"]][:2] == ["fold_padding", "fold_upsampling"]
    assert told["differences"][0]["output"] == "image"


def test_bad_input_on_the_command_line(vaedeploy, tmp_path):
    ended = vaedeploy("optimize", tmp_path / "none.onnx", "-o", tmp_path / "out.onnx")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == f"Error: there is no file {tmp_path / 'none.onnx'}\n"


def test_nodes_that_stay_in_float32(tmp_path, vaedeploy):
    source, out = upsampler(tmp_path / "in.onnx"), tmp_path / "out.onnx"
    assert vaedeploy("optimize", source, "-o", out, "--precision", "fp16", "--keep-fp32", "conv_in").code == 0
    types = {node.name: node.inputs[1].dtype.name for node in ir.load(out).graph if node.op_type == "Conv"}
    assert types.pop("conv_in") == "FLOAT"
    assert set(types.values()) == {"FLOAT16"}
    for options, why in (
        (
            {"precision": "fp16", "keep_fp32": ["nowhere"]},
            f"keep_fp32 names 'nowhere', and {source} has no node of that",
        ),
        ({"keep_fp32": ["conv_in"]}, "keep_fp32 is for half precision, and this graph is not lowered; leave it out"),
        ({"precision": "fp16", "keep_fp32": "conv_in"}, "keep_fp32 is a string; give a list: ['conv_in']"),
    ):
        with pytest.raises(InputError) as refused:
            optimize_onnx(source, tmp_path / "other.onnx", **options)
        assert str(refused.value).startswith(why)

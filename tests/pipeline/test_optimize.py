from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import os
import warnings
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import safetensors.numpy
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from onnx import helper, numpy_helper

from vaedeploy.cli.tables.optimize import MOST_REASONS, rule_rows
from vaedeploy.errors import InputError, OutputError
from vaedeploy.pipeline.optimize import NOT_MEASURED, files, optimize_onnx
from vaedeploy.pipeline.optimize.inputs import choose_sizes, dimensions, parse_sizes, random_feed
from vaedeploy.pipeline.optimize.proof import run_both
from vaedeploy.rewrite import Outcome, Refusal
from vaedeploy.system.lock import lock

LATENT = ("batch", 4, "height", "width")


def upsampler(
    path: Path,
    *,
    gain: float = 1.0,
    last: float = 1.0,
    shape=LATENT,
    opset: int = 20,
    dtype=np.float32,
    extra=(),
    kept: int = 64,
) -> Path:
    """latent (B, 4, h, w) -> convolution -> nearest x2 -> convolution -> image (B, 3, 2h, 2w).

    gain, last: factors of the first and of the second convolution's weights. extra: nodes from ``plain`` to ``image``.
    kept: weights of fewer bytes are in the file itself, the others in its .data.
    """
    random = np.random.default_rng(0)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    weights = {
        "first": (random.standard_normal((8, 4, 3, 3)) * 0.2 * gain).astype(dtype),
        "second": (random.standard_normal((3, 8, 3, 3)) * 0.2 * last).astype(dtype),
        "scales": np.array([1, 1, 2, 2], np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["latent", "first"], ["inner"], "conv_in", pads=[1, 1, 1, 1]),
        helper.make_node(
            "Resize",
            ["inner", "", "scales"],
            ["large"],
            "resize",
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        ),
        helper.make_node("Conv", ["large", "second"], ["plain" if extra else "image"], "conv_out", pads=[1, 1, 1, 1]),
        *extra,
    ]
    graph = helper.make_graph(
        nodes,
        "upsampler",
        [helper.make_tensor_value_info("latent", kind, shape)],
        [helper.make_tensor_value_info("image", kind, [shape[0], 3, None, None])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.example", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=9)
    onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=kept)
    return path


def latents(path: Path, **tensors) -> Path:
    random = np.random.default_rng(1)
    given = tensors or {"latent": random.standard_normal((1, 4, 6, 10)).astype(np.float32)}
    safetensors.numpy.save_file(given, path)
    return path


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def interface(path: Path) -> list[tuple]:
    model = onnx.load(path, load_external_data=False)
    return [
        (value.name, value.type.SerializeToString(deterministic=True))
        for value in (*model.graph.input, *model.graph.output)
    ]


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
    pytest.param(architecture, part, opset, dynamo, marks=pytest.mark.slow if dynamo else ())
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
    model = files.read_source(source).model
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


@pytest.mark.parametrize("text", ["height", "height=", "=8", "height=0", "height=-8", "height=8.5", "height=x"])
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


# ------------------------------------------------------------------------------------------------------ bad graphs


def test_files_that_are_no_graphs(tmp_path):
    def refused(path: Path) -> str:
        with pytest.raises(InputError) as error:
            optimize_onnx(path, tmp_path / "out.onnx")
        assert not list(tmp_path.glob("*out*"))
        return str(error.value)

    (tmp_path / "text.onnx").write_text("this is no graph")
    (tmp_path / "empty.onnx").touch()
    short = upsampler(tmp_path / "short.onnx")
    data = tmp_path / "short.onnx.data"
    size = data.stat().st_size
    os.truncate(data, size - 8)
    lost = upsampler(tmp_path / "lost.onnx")
    (tmp_path / "lost.onnx.data").unlink()
    broken = upsampler(tmp_path / "broken.onnx", extra=[helper.make_node("Relu", ["nowhere"], ["image"], "relu")])

    assert refused(tmp_path / "none.onnx") == f"there is no file {tmp_path / 'none.onnx'}"
    assert refused(tmp_path) == f"{tmp_path} is a folder; give the .onnx file in it"
    assert refused(tmp_path / "text.onnx").startswith(
        f"{tmp_path / 'text.onnx'} is not an ONNX file, or a damaged one: "
    )
    assert refused(tmp_path / "empty.onnx") == f"{tmp_path / 'empty.onnx'} is not an ONNX file: it holds no graph"
    assert f"and there is no {tmp_path / 'lost.onnx.data'}. Put it there" in refused(lost)
    assert f"is too short: it has {size - 8} bytes, and second ends at {size}" in refused(short)
    assert refused(broken).startswith(f"{broken} is not a valid ONNX model: ")
    old = upsampler(tmp_path / "old.onnx", opset=12)
    assert refused(old).startswith(f"{old} has opset 12; 13 to {onnx.defs.onnx_opset_version()} are taken. Export it ")


@pytest.mark.parametrize(
    ("dtype", "options", "message"),
    [
        (np.float16, {"precision": "fp32"}, "is fp16 and cannot become fp32: what was rounded away does not come back"),
        (np.float16, {"precision": "bf16", "target": "tensorrt"}, "is fp16 and cannot become bf16"),
        (np.float32, {"precision": "bf16"}, "ONNX Runtime has no bfloat16 convolution: bf16 is for --target tensorrt"),
        (np.float32, {"precision": "fp8"}, "precision is 'fp8'; it must be one of fp32, fp16, bf16"),
        (np.float32, {"target": "tpu"}, "target is 'tpu'; it must be one of onnxruntime, tensorrt"),
        (np.float64, {}, "computes in float64; export it in float32"),
    ],
)
def test_what_cannot_be_made(tmp_path, dtype, options, message):
    with pytest.raises(InputError) as error:
        optimize_onnx(upsampler(tmp_path / "in.onnx", dtype=dtype), tmp_path / "out.onnx", **options)
    assert message in str(error.value)


# --------------------------------------------------------------------------------------------------- where it goes


def test_what_is_there_stays_without_force(tmp_path):
    source, out = upsampler(tmp_path / "in.onnx"), tmp_path / "out.onnx"
    for taken in (out, tmp_path / "out.onnx.data"):
        taken.write_text("mine")
        with pytest.raises(OutputError) as error:
            optimize_onnx(source, out)
        assert (
            str(error.value)
            == f"{taken} is there already. Replace it with --force (force=True in Python), or give another name with -o"
        )
        assert taken.read_text() == "mine"
        taken.unlink()
    optimize_onnx(source, out)
    first = digests(tmp_path)
    optimize_onnx(source, out, target="tensorrt", force=True)
    assert set(digests(tmp_path)) == set(first)
    assert digests(tmp_path)["out.onnx"] != first["out.onnx"]


@pytest.mark.parametrize("out", ["in.onnx", "in.onnx.data", "link.onnx", "weights"])
def test_the_source_is_never_written_to(tmp_path, out):
    source = upsampler(tmp_path / "in.onnx")
    (tmp_path / "link.onnx").symlink_to("in.onnx")
    if out == "weights":  # another graph whose weights are where ours would go
        source = tmp_path / "renamed.onnx"
        (tmp_path / "in.onnx").rename(source)
        out = "in.onnx"
    before = digests(tmp_path) if out != "in.onnx" or source.name == "in.onnx" else None
    told = (
        "is the graph that is read" if out in ("in.onnx", "link.onnx") and source.name == "in.onnx" else "belongs to .*"
    )
    with pytest.raises(OutputError, match=rf"{told}, which is never written over. Choose another name with -o"):
        optimize_onnx(source, tmp_path / out, force=True)
    assert before is None or digests(tmp_path) == before


def test_places_that_cannot_be_written_to(tmp_path):
    source = upsampler(tmp_path / "in.onnx")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(OutputError, match=r"folder\.onnx: it is there and is not a file"):
        optimize_onnx(source, tmp_path / "folder.onnx", force=True)
    with pytest.raises(
        OutputError, match=r"No such file or directory\. Make its folder first, or choose another place"
    ):
        optimize_onnx(source, tmp_path / "nowhere" / "out.onnx")
    with (
        lock(tmp_path / ".out.onnx.lock"),
        pytest.raises(OutputError, match="another process is writing it now"),
    ):
        optimize_onnx(source, tmp_path / "out.onnx")


def test_nothing_half_written_is_left(tmp_path):
    source = upsampler(tmp_path / "in.onnx", gain=1e7)
    killed = tmp_path / ".out.onnx.0123456789ab.tmp"
    killed.mkdir()
    (killed / "out.onnx").touch()
    with pytest.raises(InputError, match="beyond float16's range"):
        optimize_onnx(source, tmp_path / "out.onnx", precision="fp16")
    assert set(digests(tmp_path)) == {"in.onnx", "in.onnx.data"}


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

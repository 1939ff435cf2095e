"""A tiny bundle whose graphs keep the graph contract, for tests of what runs bundles. It needs onnx, not PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vaedeploy.bundle import Bundle, create_bundle
from vaedeploy.bundle.manifest import Manifest, VaeInfo, Verification
from vaedeploy.values.latent import LatentSpec
from vaedeploy.values.origin import Origin

FLOAT, UINT8, INT64, BOOL = TensorProto.FLOAT, TensorProto.UINT8, TensorProto.INT64, TensorProto.BOOL

PASSED = Verification(passed=True, reference="made by hand", backend="none", worst={"relative_l2": 0.0}, cases=1)
FAILED = Verification(passed=False, reference="made by hand", backend="none", worst={"relative_l2": 1.0}, cases=1)


def tiny_bundle(
    out: Path,
    *,
    factor: int = 4,
    channels: int = 2,
    image_channels: int = 3,
    sampled: bool = True,
    image_input: Literal["float", "uint8"] = "float",
    verification: Verification | None = PASSED,
    onnxruntime_form: bool = False,
    fused_form: Literal["none", "runs here", "has no kernel"] = "none",
    report: bytes | None = None,
    seed: int = 0,
    gain: float = 1.0,
    scale: float | tuple[float, ...] = 1.0,
    shift: float | tuple[float, ...] = 0.0,
    force: bool = False,
) -> Bundle:
    """Make a bundle of an encoder of one strided convolution and a decoder of one transposed convolution.

    ``gain`` multiplies the encoder's weights, which ``encoder_weights`` gives.
    ``scale`` and ``shift``: of the latent contract, which the encoder's graph applies, and the decoder's leaves out.
    ``onnxruntime_form``: the decoder has a second form, whose image is the portable one's negative.
    ``fused_form``: the decoder has a form for ONNX Runtime's CUDA provider, whose image is the negative too, or which
    has an operator that no CPU has. The manifest says that the graphs are fp16 then.
    ``report``: the content of ``report/onnxruntime-cuda.json``.
    """
    latent = LatentSpec(channels, factor, scale, shift, sampled, image_channels)
    manifest = tiny_manifest(latent, image_input, verification)
    with create_bundle(out, force) as draft:
        _save(_encoder(latent, image_input, seed, gain), draft.path / "encoder.onnx")
        _save(_decoder(latent, seed), draft.path / "decoder.onnx")
        if onnxruntime_form:
            _save(_decoder(latent, seed, sign=-1.0), draft.path / "decoder.ort.onnx")
            manifest.graphs["decoder"]["onnxruntime"] = "decoder.ort.onnx"
        if fused_form != "none":
            fused = _decoder(latent, seed, sign=-1.0)
            if fused_form == "has no kernel":
                fused.graph.node[0].op_type, fused.graph.node[0].domain = "NhwcConv", "com.microsoft"
                fused.opset_import.append(helper.make_opsetid("com.microsoft", 1))
            _save(fused, draft.path / "decoder.cuda.onnx")
            manifest.graphs["decoder"]["onnxruntime-cuda"] = "decoder.cuda.onnx"
            manifest = msgspec.structs.replace(manifest, precision="fp16")
        if report is not None:
            (draft.path / "report").mkdir()
            (draft.path / "report" / "onnxruntime-cuda.json").write_bytes(report)
        return draft.finish(manifest)


def tiny_manifest(
    latent: LatentSpec,
    image_input: Literal["float", "uint8"] = "float",
    verification: Verification | None = PASSED,
) -> Manifest:
    return Manifest(
        vaedeploy="0.0",
        vae=VaeInfo("tiny", "1" * 64, "Tiny", "Apache-2.0", Origin("random", "random:0", None, "sd15")),
        latent=latent,
        image_input=image_input,
        precision="fp32",
        graphs={"encoder": {"portable": "encoder.onnx"}, "decoder": {"portable": "decoder.onnx"}},
        rewrites={"decoder.ort.onnx": {"fold_padding": 0}},
        verification=verification,
    )


def encoder_weights(spec: LatentSpec, seed: int = 0, gain: float = 1.0) -> np.ndarray:
    """Of the convolution that is the encoder: means, and the logarithms of deviations behind them."""
    many = spec.channels * (2 if spec.sampled else 1)
    shape = (many, spec.image_channels, spec.factor, spec.factor)
    return (gain * np.random.default_rng(seed).normal(0, 0.1, shape)).astype(np.float32)


def _encoder(spec: LatentSpec, image_input: str, seed: int, gain: float = 1.0) -> onnx.ModelProto:
    scale, shift = (np.reshape(np.float32(value), (-1, 1, 1)) for value in (spec.scale, spec.shift))
    tensors = {"weights": encoder_weights(spec, seed, gain), "half": np.float32(127.5), "one": np.float32(1)}
    tensors |= {"scale": scale, "shift": shift, "size of scale": np.abs(scale)}
    nodes = []
    image = ("image", FLOAT, ["batch", spec.image_channels, "height", "width"])
    if image_input == "uint8":
        image = ("image_u8", UINT8, ["batch", "height", "width", spec.image_channels])
        nodes = [
            helper.make_node("Cast", ["image_u8"], ["bytes"], to=FLOAT),  # first: TensorRT transposes no uint8
            helper.make_node("Transpose", ["bytes"], ["levels"], perm=[0, 3, 1, 2]),
            helper.make_node("Div", ["levels", "half"], ["divided"]),
            helper.make_node("Sub", ["divided", "one"], ["image"]),
        ]
    stride = [spec.factor, spec.factor]
    result = "moments" if spec.sampled else "raw_mean"
    mean = "latent_mean" if spec.sampled else "latent"
    nodes.append(helper.make_node("Conv", ["image", "weights"], [result], strides=stride))
    if spec.sampled:
        nodes.append(helper.make_node("Split", ["moments"], ["raw_mean", "logarithm"], axis=1, num_outputs=2))
        nodes.append(helper.make_node("Exp", ["logarithm"], ["raw_std"]))
        nodes.append(helper.make_node("Mul", ["raw_std", "size of scale"], ["latent_std"]))
    nodes.append(helper.make_node("Sub", ["raw_mean", "shift"], ["shifted"]))
    nodes.append(helper.make_node("Mul", ["shifted", "scale"], [mean]))
    shape = ["batch", spec.channels, "h", "w"]
    outputs = [(name, FLOAT, shape) for name in (["latent_mean", "latent_std"] if spec.sampled else ["latent"])]
    return _model(nodes, [image], outputs, tensors)


def _decoder(spec: LatentSpec, seed: int, sign: float = 1.0) -> onnx.ModelProto:
    rng = np.random.default_rng(seed + 1)
    shape = (spec.channels, spec.image_channels, spec.factor, spec.factor)
    weights = sign * rng.normal(0, 0.5, shape).astype(np.float32)
    tensors = {
        "weights": weights.astype(np.float32),
        "half": np.float32(127.5),
        "one": np.float32(1),
        "low": np.float32(0),
        "high": np.float32(255),
        "axes": np.array([1, 2, 3]),
    }
    stride = [spec.factor, spec.factor]
    nodes = [
        helper.make_node("ConvTranspose", ["latent", "weights"], ["image"], strides=stride),
        helper.make_node("Add", ["image", "one"], ["raised"]),
        helper.make_node("Mul", ["raised", "half"], ["levels"]),
        helper.make_node("Round", ["levels"], ["rounded"]),
        helper.make_node("Clip", ["rounded", "low", "high"], ["clipped"]),
        helper.make_node("Transpose", ["clipped"], ["last"], perm=[0, 2, 3, 1]),
        helper.make_node("Cast", ["last"], ["image_u8"], to=UINT8),
        # A number minus itself is 0, unless it is NaN or infinite.
        helper.make_node("Sub", ["image", "image"], ["zeros"]),
        helper.make_node("ReduceSum", ["zeros", "axes"], ["sum"], keepdims=0),
        helper.make_node("Equal", ["sum", "low"], ["finite"]),
    ]
    outputs = [
        ("image", FLOAT, ["batch", spec.image_channels, "height", "width"]),
        ("image_u8", UINT8, ["batch", "height", "width", spec.image_channels]),
        ("finite", BOOL, ["batch"]),
    ]
    return _model(nodes, [("latent", FLOAT, ["batch", spec.channels, "h", "w"])], outputs, tensors)


Value = tuple[str, int, list[int | str]]


def _model(
    nodes: list[onnx.NodeProto], inputs: list[Value], outputs: list[Value], tensors: dict[str, np.ndarray]
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def _save(model: onnx.ModelProto, path: Path) -> None:
    onnx.save_model(model, path, save_as_external_data=True, location=path.name + ".data", size_threshold=64)

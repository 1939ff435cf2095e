"""Modules -> ONNX: names, shapes, the latent contract in the graph, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from vaedeploy.errors import ExportError, InputError
from vaedeploy.graph.graph import Graph, save_graph
from vaedeploy.graph.trace import OPSET, trace_graph
from vaedeploy.testing.tiny import TinyDecoder, TinyEncoder, tiny_reference
from vaedeploy.values.kinds import Part
from vaedeploy.values.latent import LatentSpec
from vaedeploy.values.reference import Reference
from vaedeploy.version import __version__

PARTS: tuple[Part, ...] = ("encoder", "decoder")
SCALE = (0.3, 2.0, -1.5, 0.01)
SHIFT = (0.5, 0.0, -3.0, 10.0)


@pytest.fixture(scope="module")
def reference() -> Reference:
    return tiny_reference(scale=SCALE, shift=SHIFT)


@pytest.fixture(scope="module")
def graphs(reference: Reference) -> dict[Part, Graph]:
    return {part: trace_graph(reference, part) for part in PARTS}


@pytest.fixture(scope="module")
def paths(graphs: dict[Part, Graph], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {part: save(graph, tmp_path_factory.mktemp("graphs")) for part, graph in graphs.items()}


class Through(nn.Module):
    def forward(self, latent: Tensor) -> Tensor:
        return latent[:, :3] + latent[:, 3:]


@pytest.fixture(scope="module")
def through(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder that changes nothing but the number of channels."""
    reference = Reference(nn.Identity(), Through(), LatentSpec(channels=4, factor=1, scale=1.0))
    return save(trace_graph(reference, "decoder"), tmp_path_factory.mktemp("through"))


def save(graph: Graph, folder: Path) -> Path:
    save_graph(graph, folder / f"{graph.part}.onnx")
    return folder / f"{graph.part}.onnx"


def run(path: Path, value: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: value})


def describe(values: list[onnx.ValueInfoProto]) -> dict[str, list[str | int]]:
    return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}


def test_names_and_sizes(paths: dict[str, Path]) -> None:
    encoder, decoder = (onnx.load(paths[part], load_external_data=False) for part in ("encoder", "decoder"))
    assert describe(encoder.graph.input) == {"image": ["batch", 3, "height", "width"]}
    latent = describe(encoder.graph.output)
    assert list(latent) == ["latent_mean", "latent_std"]
    assert [shape[:2] for shape in latent.values()] == [["batch", 4]] * 2
    assert all("height" in str(shape[2]) and "width" in str(shape[3]) for shape in latent.values())
    assert describe(decoder.graph.input) == {"latent": ["batch", 4, "latent_height", "latent_width"]}
    assert describe(decoder.graph.output) == {
        "image": ["batch", 3, "4*latent_height", "4*latent_width"],
        "image_u8": ["batch", "4*latent_height", "4*latent_width", 3],
        "finite": ["batch"],
    }


def test_opset_and_metadata(paths: dict[str, Path], reference: Reference) -> None:
    for part, path in paths.items():
        model = onnx.load(path, load_external_data=False)
        onnx.checker.check_model(path, full_check=True)
        assert [(o.domain, o.version) for o in model.opset_import if o.domain == ""] == [("", OPSET)]
        told = {p.key: p.value for p in model.metadata_props}
        assert json.loads(told.pop("vaedeploy.latent")) == {
            "channels": 4,
            "factor": 4,
            "scale": list(SCALE),
            "shift": list(SHIFT),
            "sampled": True,
        }
        assert told == {
            "vaedeploy.version": __version__,
            "vaedeploy.part": part,
            "vaedeploy.preset": "",
            "vaedeploy.weights_sha256": "",
            "vaedeploy.identity": reference.identity,
        }


def test_weights_lie_beside_the_model(paths: dict[str, Path]) -> None:
    model = onnx.load(paths["decoder"], load_external_data=False)
    places = {e.value for i in model.graph.initializer for e in i.external_data if e.key == "location"}
    assert places == {"decoder.onnx.data"}


def test_the_graph_does_not_tell_of_the_machine(paths: dict[str, Path]) -> None:
    for path in paths.values():
        text = path.read_bytes()
        assert b"stack_trace" not in text
        assert b".py" not in text


@pytest.mark.slow
def test_exporting_again_gives_the_same_bytes_and_prints_nothing(
    paths: dict[str, Path], reference: Reference, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save(trace_graph(reference, "decoder"), tmp_path)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
    for name in ("decoder.onnx", "decoder.onnx.data"):
        assert (tmp_path / name).read_bytes() == (paths["decoder"].parent / name).read_bytes()


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 4, 4), (1, 20, 12), (3, 12, 36), (2, 64, 64)])
def test_latents_are_what_the_diffusion_model_sees(
    paths: dict[str, Path], reference: Reference, batch: int, height: int, width: int
) -> None:
    image = np.random.default_rng(0).uniform(-1, 1, (batch, 3, height, width)).astype(np.float32)
    found_mean, found_std = run(paths["encoder"], image)
    with torch.no_grad():
        mean, std = (t.numpy() for t in reference.encoder(torch.from_numpy(image)))
    scale, shift = (np.reshape(v, (1, 4, 1, 1)) for v in (SCALE, SHIFT))
    np.testing.assert_allclose(found_mean, (mean - shift) * scale, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found_std, std * np.abs(scale), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 1, 1), (1, 5, 3), (3, 3, 9), (2, 16, 16)])
def test_images_are_given_as_floats_and_bytes(
    paths: dict[str, Path], reference: Reference, batch: int, height: int, width: int
) -> None:
    raw = np.random.default_rng(0).normal(0, 2, (batch, 4, height, width)).astype(np.float32)
    scale, shift = (np.reshape(v, (1, 4, 1, 1)).astype(np.float32) for v in (SCALE, SHIFT))
    image, levels, finite = run(paths["decoder"], (raw - shift) * scale)
    with torch.no_grad():
        expected = reference.decoder(torch.from_numpy(raw)).numpy()
    np.testing.assert_allclose(image, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(levels, np.round((image + 1) * 127.5).clip(0, 255).transpose(0, 2, 3, 1))
    assert levels.dtype == np.uint8
    assert {int(levels.min()), int(levels.max())} != {int(levels.min())}
    assert finite.tolist() == [True] * batch


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_finite_tells_which_item_is_broken(through: Path, bad: float) -> None:
    latent = np.zeros((3, 4, 2, 2), dtype=np.float32)
    latent[1, 2, 0, 1] = bad
    assert run(through, latent)[2].tolist() == [True, False, True]


def test_bytes_are_clamped(through: Path) -> None:
    latent = np.zeros((1, 4, 1, 6), dtype=np.float32)
    latent[:, :3] = [-7, -1, -0.001, 0.001, 1, 7]
    assert run(through, latent)[1][0, 0, :, 0].tolist() == [0, 0, 127, 128, 255, 255]


def test_uint8_input(reference: Reference, paths: dict[str, Path], tmp_path: Path) -> None:
    save_graph(trace_graph(reference, "encoder", image_input="uint8"), tmp_path / "encoder.onnx")
    model = onnx.load(tmp_path / "encoder.onnx", load_external_data=False)
    assert describe(model.graph.input) == {"image_u8": ["batch", "height", "width", 3]}
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    pixels = np.random.default_rng(0).integers(0, 256, (2, 20, 12, 3), dtype=np.uint8)
    floats = pixels.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(127.5) - 1
    for found, expected in zip(run(tmp_path / "encoder.onnx", pixels), run(paths["encoder"], floats), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_without_a_distribution_there_is_one_output(tmp_path: Path) -> None:
    reference = tiny_reference(sampled=False, scale=0.5, shift=2.0)
    save_graph(trace_graph(reference, "encoder"), tmp_path / "encoder.onnx")
    assert list(describe(onnx.load(tmp_path / "encoder.onnx", load_external_data=False).graph.output)) == ["latent"]
    image = np.random.default_rng(0).uniform(-1, 1, (2, 3, 12, 8)).astype(np.float32)
    with torch.no_grad():
        raw = reference.encoder(torch.from_numpy(image)).numpy()
    np.testing.assert_allclose(run(tmp_path / "encoder.onnx", image)[0], (raw - 2.0) * 0.5, rtol=1e-5, atol=1e-5)


def test_nothing_is_random(paths: dict[str, Path]) -> None:
    for path in paths.values():
        assert not [n.op_type for n in onnx.load(path, load_external_data=False).graph.node if "Random" in n.op_type]


class Undecided(nn.Module):
    """Looks at its data to choose what to do, which no graph can hold."""

    def forward(self, latent: Tensor) -> Tensor:
        return latent[:, :3] if latent.sum() > 0 else latent[:, 1:]


class Fixed(nn.Module):
    """Takes one size only."""

    def forward(self, latent: Tensor) -> Tensor:
        return latent[:, :3].reshape(2, 3, 8, 12)


def test_untraceable_module_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    reference = Reference(TinyEncoder(4), Undecided(), LatentSpec(channels=4, factor=1, scale=1.0))
    with pytest.raises(ExportError) as error:
        trace_graph(reference, "decoder")
    assert str(error.value).startswith("torch could not trace the decoder (Undecided) to ONNX: Could not guard on ")
    assert str(error.value).endswith(
        ". The exporter's own report is this error's cause; the command line shows it with: vaedeploy --verbose"
    )
    assert "Could not guard on" in str(error.value.__cause__)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_constant_size_is_refused() -> None:
    reference = Reference(TinyEncoder(4), Fixed(), LatentSpec(channels=4, factor=1, scale=1.0))
    with pytest.raises(ExportError, match=r"^the decoder gives image whose batch, height, width became constant"):
        trace_graph(reference, "decoder")


def test_other_channels_than_the_contract_says_are_refused() -> None:
    reference = Reference(TinyEncoder(4), TinyDecoder(4), LatentSpec(channels=5, factor=4, scale=1.0))
    with pytest.raises(ExportError, match=r"^the encoder \(TinyEncoder\) gives latent_mean of shape .*channels=5"):
        trace_graph(reference, "encoder")


def test_another_image_input_is_refused(reference: Reference) -> None:
    with pytest.raises(InputError) as error:
        trace_graph(reference, "encoder", image_input="bytes")
    assert str(error.value) == "image_input is 'bytes'; it must be 'float' or 'uint8'"


def test_graph_is_a_plain_value(graphs: dict[Part, Graph]) -> None:
    assert [(type(graph), graph.part) for graph in graphs.values()] == [(Graph, part) for part in PARTS]

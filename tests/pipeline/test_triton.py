"""Model repositories as they are written. tests/triton runs them in the real server: make test-triton."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import msgspec
import pytest
from engine_files import claim_engine, snapshot
from google.protobuf import text_format
from tiny_bundle import FAILED, tiny_bundle

import vaedeploy as vd
from vaedeploy.bundle.manifest import Manifest
from vaedeploy.bundle.stored import write_manifest
from vaedeploy.system.atomic import lock_name
from vaedeploy.system.lock import lock


def model_config(text: str) -> Any:
    """A configuration as Triton reads it, by its definition in tritonclient, whose package wants grpcio."""
    found = importlib.util.find_spec("tritonclient")
    assert found is not None
    assert found.submodule_search_locations is not None
    place = Path(found.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return text_format.Parse(text, module.ModelConfig())


@pytest.fixture(scope="module")
def config_type() -> Any:
    return model_config("")


def read(model: Path, config_type: Any) -> Any:
    return text_format.Parse((model / "config.pbtxt").read_text(), type(config_type)())


def tensors(given: Any) -> dict[str, tuple[str, list[int]]]:
    """Name -> type and dims."""
    types = given[0].DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number
    return {one.name: (types[one.data_type].name, list(one.dims)) for one in given}


@pytest.fixture
def bundle(tmp_path: Path) -> vd.Bundle:
    return tiny_bundle(tmp_path / "tiny", onnxruntime_form=True)


def files(place: Path) -> set[str]:
    return {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}


# ---------------------------------------------------------------------------------------------- the Python backend


def test_two_models_with_a_copy_of_the_bundle_each(bundle: vd.Bundle, tmp_path: Path) -> None:
    out = tmp_path / "new" / "models"
    assert vd.write_triton(bundle.path, out) == (out / "tiny-decode", out / "tiny-encode")
    for model in out.iterdir():
        copy = vd.Bundle.open(model / "1" / "bundle")
        assert copy.manifest == bundle.manifest
        assert snapshot(copy) == snapshot(bundle)
        copy.check()
        inside = files(copy.path)
        assert files(model) == {"config.pbtxt", "1/model.py", *(f"1/bundle/{name}" for name in inside)}
    graphs = [model / "1/bundle/decoder.onnx" for model in out.iterdir()]
    assert graphs[0].samefile(graphs[1])
    assert not graphs[0].samefile(bundle.path / "decoder.onnx")  # what happens to the bundle is not the server's affair
    assert sorted(path.name for path in out.parent.iterdir()) == ["models"]


def test_model_py_is_the_same_for_all_and_names_what_it_needs(bundle: vd.Bundle, tmp_path: Path) -> None:
    one, other = (model / "1/model.py" for model in vd.write_triton(bundle, tmp_path / "models"))
    text = one.read_text()
    assert other.read_text() == text
    defined: dict[str, Any] = {"__name__": "model"}
    with pytest.raises(ModuleNotFoundError, match="triton_python_backend_utils"):
        exec(compile(text, str(one), "exec"), defined)
    assert "with its extra [cpu], or [cuda] or [tensorrt] for a GPU" in text


def test_the_configuration_of_both_halves(bundle: vd.Bundle, tmp_path: Path, config_type: Any) -> None:
    decode, encode = (read(model, config_type) for model in vd.write_triton(bundle, tmp_path / "models", max_batch=4))
    assert (encode.name, decode.name) == ("tiny-encode", "tiny-decode")
    assert tensors(encode.input) == {"image": ("TYPE_FP32", [3, -1, -1]), "image_u8": ("TYPE_UINT8", [-1, -1, 3])}
    assert [one.optional for one in (*encode.input, *decode.input)] == [True, True, False]
    assert tensors(encode.output) == {
        "latent_mean": ("TYPE_FP32", [2, -1, -1]),
        "latent_std": ("TYPE_FP32", [2, -1, -1]),
    }
    assert tensors(decode.input) == {"latent": ("TYPE_FP32", [2, -1, -1])}
    assert tensors(decode.output) == {
        "image": ("TYPE_FP32", [3, -1, -1]),
        "image_u8": ("TYPE_UINT8", [-1, -1, 3]),
        "finite": ("TYPE_BOOL", [1]),
    }
    for part, config in (("encoder", encode), ("decoder", decode)):
        assert (config.backend, config.max_batch_size) == ("python", 4)
        assert all(one.allow_ragged_batch for one in config.input)
        assert config.dynamic_batching.max_queue_delay_microseconds == 2000
        # With it the scheduler of Triton 2.51 misses that a request came, and waits for 500 ms.
        assert not config.dynamic_batching.HasField("default_queue_policy")
        given = {name: value.string_value for name, value in config.parameters.items()}
        assert given == {"bundle": "bundle", "part": part, "identity": "1" * 64}


def test_a_bundle_of_bytes_and_opacity_without_a_distribution(tmp_path: Path, config_type: Any) -> None:
    bundle = tiny_bundle(tmp_path / "rgba", image_channels=4, sampled=False, image_input="uint8")
    decode, encode = (read(model, config_type) for model in vd.write_triton(bundle, tmp_path / "models", name="a.b"))
    assert (encode.name, decode.name) == ("a.b-encode", "a.b-decode")
    assert tensors(encode.input) == {"image_u8": ("TYPE_UINT8", [-1, -1, 4])}
    assert not encode.input[0].optional
    assert tensors(encode.output) == {"latent": ("TYPE_FP32", [2, -1, -1])}
    assert tensors(decode.output)["image"] == ("TYPE_FP32", [4, -1, -1])


def test_a_bundle_that_is_elsewhere(bundle: vd.Bundle, tmp_path: Path, config_type: Any) -> None:
    place = '/bundles/a "tiny" \\ one'
    for model in vd.write_triton(bundle, tmp_path / "models", bundle_at=place):
        assert files(model) == {"config.pbtxt", "1/model.py"}
        assert read(model, config_type).parameters["bundle"].string_value == place


# ------------------------------------------------------------------------------------------------ Triton's own backends


def test_native_graphs_are_onnxruntimes_with_their_weights(bundle: vd.Bundle, tmp_path: Path, config_type: Any) -> None:
    decode, encode = vd.write_triton(bundle, tmp_path / "models", native=True)
    assert files(decode) == {"config.pbtxt", "1/model.onnx", "1/decoder.ort.onnx.data"}
    assert files(encode) == {"config.pbtxt", "1/model.onnx", "1/encoder.onnx.data"}
    for model, graph in ((decode, "decoder.ort.onnx"), (encode, "encoder.onnx")):
        assert (model / "1/model.onnx").read_bytes() == (bundle.path / graph).read_bytes()
        assert (model / f"1/{graph}.data").read_bytes() == (bundle.path / f"{graph}.data").read_bytes()
        text = (model / "config.pbtxt").read_text()
        assert f"{graph} of the bundle" in text.splitlines()[0]
        assert "# - no second run in float32 of items with NaN or infinity" in text
        config = read(model, config_type)
        assert (config.backend, len(config.parameters)) == ("onnxruntime", 0)
        assert not any(one.allow_ragged_batch for one in config.input)
        (cuda,) = config.optimization.execution_accelerators.gpu_execution_accelerator
        assert (cuda.name, dict(cuda.parameters)) == ("cuda", {"use_tf32": "0"})
    assert tensors(read(encode, config_type).input) == {"image": ("TYPE_FP32", [3, -1, -1])}
    finite = read(decode, config_type).output[2]
    assert (finite.name, list(finite.dims), list(finite.reshape.shape)) == ("finite", [1], [])
    assert finite.HasField("reshape")


def test_native_engines(bundle: vd.Bundle, tmp_path: Path, config_type: Any) -> None:
    told = claim_engine(bundle, "tensorrt")
    write_manifest(bundle.path, msgspec.convert(told, Manifest))
    models = vd.write_triton(bundle, tmp_path / "models", native=True)
    assert [model.name for model in models] == ["tiny-decode", "tiny-encode", "tiny-encode-mine"]
    config = read(models[2], config_type)
    assert (config.name, config.backend, config.max_batch_size) == ("tiny-encode-mine", "tensorrt", 2)
    assert list(config.instance_group[0].profile) == ["0", "1"]
    (name,) = told["engines"]
    assert (models[2] / "1/model.plan").read_bytes() == (bundle.path / name).read_bytes()
    text = (models[2] / "config.pbtxt").read_text()
    assert "# It runs on GPUs of compute capability 8.9, with TensorRT 1.7.1.116 and no other version" in text
    assert "#   1: batch 1 to 2, height 4 to 16, width 8\n" in text


def test_triton_has_no_backend_for_engines_of_rtx(bundle: vd.Bundle, tmp_path: Path) -> None:
    write_manifest(bundle.path, msgspec.convert(claim_engine(bundle), Manifest))
    assert len(vd.write_triton(bundle, tmp_path / "models", native=True)) == 2


# ------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "a/b"}, r"^models cannot be called 'a/b'; give a name of letters, digits, '.', '_' and '-' with"),
        ({"max_batch": 0}, r"^max_batch is 0; it must be 1 or more$"),
        ({"bundle_at": "here"}, r"^bundle_at is 'here'; it must be an absolute path, that of the bundle on the server"),
        ({"bundle_at": "/there", "native": True}, r"^native models have the bundle's graphs in their folders; leave"),
    ],
)
def test_bad_arguments(bundle: vd.Bundle, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(vd.InputError, match=message):
        vd.write_triton(bundle, tmp_path / "models", **options)
    assert not (tmp_path / "models").exists()


def test_an_unverified_bundle(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "tiny", verification=FAILED)
    with pytest.raises(vd.BundleError, match=r"failed its verification; .* give --allow-unverified \(allow_unverified"):
        vd.write_triton(bundle, tmp_path / "models")
    assert len(vd.write_triton(bundle, tmp_path / "models", allow_unverified=True)) == 2


@pytest.mark.parametrize("native", [False, True])
def test_a_damaged_bundle_leaves_nothing(bundle: vd.Bundle, tmp_path: Path, native: bool) -> None:
    before = sorted(tmp_path.iterdir())
    weights = bundle.path / "decoder.ort.onnx.data"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(vd.BundleError, match=r"decoder\.ort\.onnx\.data is altered: its sha256 is"):
        vd.write_triton(bundle, tmp_path / "models", native=native)
    assert sorted(tmp_path.iterdir()) == before


def test_a_repository_that_is_there_is_replaced_on_demand_alone(bundle: vd.Bundle, tmp_path: Path) -> None:
    out = tmp_path / "models"
    out.mkdir()  # an empty folder may be taken
    vd.write_triton(bundle, out)
    before = files(out)
    with pytest.raises(
        vd.OutputError, match=r"models exists already. Replace it with --force \(force=True in Python\)"
    ):
        vd.write_triton(bundle, out, native=True)
    assert files(out) == before
    vd.write_triton(bundle, out, native=True, force=True)
    assert "tiny-decode/1/model.onnx" in files(out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models", "tiny"]


def test_what_others_put_there_is_never_replaced(bundle: vd.Bundle, tmp_path: Path) -> None:
    out = tmp_path / "models"
    vd.write_triton(bundle, out)
    (out / "diffusion").mkdir()
    (out / "diffusion" / "config.pbtxt").write_text('backend: "python"')
    with pytest.raises(
        vd.OutputError, match="models has diffusion, which vaedeploy did not write; it is left as it is"
    ):
        vd.write_triton(bundle, out, force=True)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(vd.OutputError, match=r"file is there and is a file\. Choose another place with -o"):
        vd.write_triton(bundle, tmp_path / "file", force=True)
    assert (tmp_path / "file").read_text() == "mine"


def test_one_process_writes_a_repository_at_a_time(bundle: vd.Bundle, tmp_path: Path) -> None:
    out = tmp_path / "models"
    with (
        lock(lock_name(out)),
        pytest.raises(vd.OutputError, match=r"another process is writing it now\. Wait until it is"),
    ):
        vd.write_triton(bundle, out)
    assert not out.exists()

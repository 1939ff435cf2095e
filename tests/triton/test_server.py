"""Model repositories in the real server, with real clients. make test-triton runs them, in an environment of their own:
the server's Python backend takes no numpy 2.
"""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arrays import noise
from tiny_bundle import tiny_bundle
from triton_server import PATIENCE, Server, missing, prepare, runs, serving, until

import vaedeploy as vd
from vaedeploy.errors import VaedeployError
from vaedeploy.values.kinds import Part

if why := missing():
    pytestmark = pytest.mark.skip(reason=why)
else:
    from tritonclient.utils import InferenceServerException, np_to_triton_dtype

PROTOCOLS = ("http", "grpc")

Outputs = Mapping[str, np.ndarray[Any, Any]]

CHANNELS = 2
"""Of a tiny bundle's latents."""

LONG = 20_000_000
"""Microseconds that requests wait for others: until a batch is full."""


def photo(*shape: int) -> np.ndarray[Any, Any]:
    """Images, (B, H, W, 3) uint8."""
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)


def library(protocol: str) -> Any:
    return importlib.import_module(f"tritonclient.{protocol}")


def connect(server: Server, protocol: str) -> Any:
    port = server.http if protocol == "http" else server.grpc
    return library(protocol).InferenceServerClient(f"127.0.0.1:{port}")


def tensors(protocol: str, arrays: Outputs, outputs: tuple[str, ...] = ()) -> dict[str, Any]:
    """The arguments of a client's ``infer``."""
    client = library(protocol)
    inputs = []
    for name, array in arrays.items():
        given = client.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
        given.set_data_from_numpy(array)
        inputs.append(given)
    return {"inputs": inputs, "outputs": [client.InferRequestedOutput(name) for name in outputs] or None}


def read(result: Any) -> Outputs:
    told = result.get_response()
    names = [one["name"] for one in told["outputs"]] if isinstance(told, dict) else [one.name for one in told.outputs]
    return {name: result.as_numpy(name) for name in names}


def infer(server: Server, protocol: str, model: str, arrays: Outputs, outputs: tuple[str, ...] = ()) -> Outputs:
    with connect(server, protocol) as client:
        return read(client.infer(model, **tensors(protocol, arrays, outputs)))


def expected(vae: vd.VAE, part: Part, array: np.ndarray[Any, Any], outputs: tuple[str, ...] = ()) -> Outputs:
    """What the runtime gives; ``finite`` as Triton gives it."""
    given = vae.compute(part, array, outputs or vae.manifest.interface(part).outputs)
    return {name: value[:, None] if name == "finite" else value for name, value in given.items()}


def assert_same(actual: Outputs, wanted: Outputs) -> None:
    assert actual.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(actual[name], value, strict=True)


def written(folder: Path, name: str, **options: Any) -> Path:
    """A repository that was moved after it was written."""
    bundle = tiny_bundle(folder / "bundle" / name, **options)
    vd.write_triton(bundle, folder / "here" / name, name=name)
    place = folder / name
    (folder / "here" / name).rename(place)
    return place


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("triton")


@pytest.fixture(scope="module")
def server(places: Path) -> Iterator[Server]:
    """Serves tiny, and rgba, whose encoder takes uint8 and gives no distribution. What is asked of joins waits long."""
    plain, joins = written(places, "tiny"), written(places, "joins")
    rgba = written(places, "rgba", image_channels=4, sampled=False, image_input="uint8")
    prepare(plain)
    prepare(rgba)
    prepare(joins, delay=LONG)
    with serving([plain, rgba, joins], places / "server.log") as server:
        yield server


@pytest.fixture(scope="module")
def tiny(places: Path, server: Server) -> Iterator[vd.VAE]:
    with vd.VAE(places / "bundle" / "tiny") as vae:
        yield vae


@pytest.fixture(scope="module")
def rgba(places: Path, server: Server) -> Iterator[vd.VAE]:
    with vd.VAE(places / "bundle" / "rgba") as vae:
        yield vae


# ---------------------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("batch", [1, 3])
def test_answers_are_the_runtimes_bit_for_bit(server: Server, tiny: vd.VAE, protocol: str, batch: int) -> None:
    image, latent = photo(batch, 8, 12), noise(batch, CHANNELS, 5, 3)
    planes = noise(batch, 3, 12, 4).clip(-1, 1)
    ask = partial(infer, server, protocol)
    assert_same(ask("tiny-encode", {"image_u8": image}), expected(tiny, "encoder", image))
    assert_same(ask("tiny-encode", {"image": planes}), expected(tiny, "encoder", planes))
    assert_same(ask("tiny-decode", {"latent": latent}), expected(tiny, "decoder", latent))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_images_with_opacity_and_a_latent_without_a_distribution(server: Server, rgba: vd.VAE, protocol: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (2, 8, 4, 4), np.uint8)
    latent = noise(1, CHANNELS, 2, 2)
    assert_same(infer(server, protocol, "rgba-encode", {"image_u8": image}), expected(rgba, "encoder", image))
    assert_same(infer(server, protocol, "rgba-decode", {"latent": latent}), expected(rgba, "decoder", latent))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_outputs_that_are_asked_for(server: Server, tiny: vd.VAE, protocol: str) -> None:
    latent = noise(2, CHANNELS, 2, 2)
    latent[1] = 3.4e38
    names = ("finite", "image_u8")
    answer = infer(server, protocol, "tiny-decode", {"latent": latent}, names)
    assert_same(answer, expected(tiny, "decoder", latent, names))
    assert answer["finite"].tolist() == [[True], [False]]


def together(server: Server, model: str, asked: list[Outputs]) -> list[Outputs | InferenceServerException]:
    """The answers to requests that are sent at once, in their order."""
    answers: list[Any] = [None] * len(asked)
    left = threading.Semaphore(0)

    def arrived(index: int, result: Any, error: Any) -> None:
        answers[index] = error or read(result)
        left.release()

    with connect(server, "grpc") as client:
        for index, arrays in enumerate(asked):
            client.async_infer(model, callback=partial(arrived, index), **tensors("grpc", arrays))
        for _ in asked:
            assert left.acquire(timeout=PATIENCE)
    return answers


def computed(server: Server, model: str) -> tuple[int, int]:
    """How many items and batches a model has computed."""
    with connect(server, "http") as client:
        (told,) = client.get_inference_statistics(model)["model_stats"]
    return told["inference_count"], told["execution_count"]


def test_mixed_sizes_come_in_one_batch(server: Server, tiny: vd.VAE) -> None:
    """Eight items are a batch, which goes at once; nothing else would end the wait."""
    sizes = [(2, 2), (2, 3), (4, 2)]
    asked = [{"latent": noise(1, CHANNELS, *sizes[index % 3], seed=index)} for index in range(8)]
    before = computed(server, "joins-decode")
    answers = together(server, "joins-decode", asked)
    assert np.subtract(computed(server, "joins-decode"), before).tolist() == [8, 1]
    for one, answer in zip(asked, answers, strict=True):
        assert isinstance(answer, dict)
        assert_same(answer, expected(tiny, "decoder", one["latent"]))


def test_images_of_both_forms_and_batches_of_several(server: Server, tiny: vd.VAE) -> None:
    asked: list[Outputs] = [{"image_u8": photo(2, 8, 8)}, {"image_u8": photo(5, 4, 8)}, {"image_u8": photo(1, 8, 8)}]
    for one, answer in zip(asked, together(server, "joins-encode", asked), strict=True):
        assert isinstance(answer, dict)
        assert_same(answer, expected(tiny, "encoder", one["image_u8"]))


def test_what_is_wrong_with_one_request_is_not_the_others_error(server: Server, tiny: vd.VAE) -> None:
    asked = [{"latent": noise(1, CHANNELS, 2, 2, seed=index)} for index in range(8)]
    asked[3]["latent"][0, 0, 0, 0] = np.nan
    answers = together(server, "joins-decode", asked)
    with pytest.raises(VaedeployError) as sentence:
        tiny.decode(asked[3]["latent"])
    refused = answers.pop(3)
    assert isinstance(refused, InferenceServerException)
    assert (refused.status(), refused.message()) == ("StatusCode.INVALID_ARGUMENT", str(sentence.value))
    del asked[3]
    for one, answer in zip(asked, answers, strict=True):
        assert isinstance(answer, dict)
        assert_same(answer, expected(tiny, "decoder", one["latent"]))


# ----------------------------------------------------------------------------------------------------------- errors


def with_nan(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    array[0, 1, 0, 0] = np.nan
    return array


ONE_INPUT = "inputs; send the images once, as image (B, N, H, W) float32 or as image_u8 (B, H, W, N) uint8"

REFUSED: dict[str, tuple[str, Outputs, str | None]] = {
    "an odd size": ("tiny-encode", {"image_u8": photo(1, 7, 5)}, None),
    "NaN in a latent": ("tiny-decode", {"latent": with_nan(noise(1, CHANNELS, 2, 2))}, None),
    "NaN in an image": ("tiny-encode", {"image": with_nan(noise(1, 3, 8, 8).clip(-1, 1))}, None),
    "floats outside of the range": ("tiny-encode", {"image": np.full((1, 3, 8, 8), 2, np.float32)}, None),
    "both forms": (
        "tiny-encode",
        {"image": noise(1, 3, 8, 8).clip(-1, 1), "image_u8": photo(1, 8, 8)},
        f"the request has 2 {ONE_INPUT}",
    ),
    "without a batch": ("tiny-decode", {"latent": noise(CHANNELS, 2, 2)}, "shape"),
    "too many items": ("tiny-decode", {"latent": noise(9, CHANNELS, 2, 2)}, "batch-size must be <= 8"),
    "too many channels": ("tiny-decode", {"latent": noise(1, 3, 2, 2)}, "shape"),
    "another type": ("tiny-decode", {"latent": noise(1, CHANNELS, 2, 2).astype(np.float16)}, "FP32"),
}
"""What is sent, and what is said; None is the runtime's own sentence."""


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused(server: Server, tiny: vd.VAE, protocol: str, case: str) -> None:
    model, arrays, words = REFUSED[case]
    with pytest.raises(InferenceServerException) as refused:
        infer(server, protocol, model, arrays)
    assert refused.value.status() == {"http": "400", "grpc": "StatusCode.INVALID_ARGUMENT"}[protocol]
    if words is not None:
        assert words in refused.value.message()
        return
    run: Callable[[Any], object] = tiny.encode if model == "tiny-encode" else tiny.decode
    (array,) = arrays.values()
    with pytest.raises(VaedeployError) as sentence:
        run(array)
    assert refused.value.message() == str(sentence.value)


def test_an_output_that_does_not_exist(server: Server) -> None:
    with pytest.raises(InferenceServerException, match="unexpected inference output 'depth'"):
        infer(server, "http", "tiny-decode", {"latent": noise(1, CHANNELS, 2, 2)}, ("depth",))


# ------------------------------------------------------------------------------------------- what cannot be loaded


def test_models_that_cannot_be_loaded_say_why(tmp_path: Path) -> None:
    numpy2 = Path(np.__file__).parents[4] / "numpy2"
    newer, without, damaged, other = (written(tmp_path, name) for name in ("newer", "without", "damaged", "other"))
    prepare(newer, first_line=f"import sys; sys.path.insert(0, {str(numpy2)!r})")
    prepare(without, first_line="import sys; sys.modules['vaedeploy'] = None")
    for place in (damaged, other):
        prepare(place)
    weights = damaged / "damaged-decode/1/bundle/decoder.onnx.data"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    for config in other.glob("*/config.pbtxt"):
        config.write_text(config.read_text().replace("1" * 64, "2" * 64))
    for place in (newer, without, damaged, other):  # each takes seconds
        shutil.rmtree(place / f"{place.name}-encode")
    with serving([newer, without, damaged, other], tmp_path / "server.log", whole=False) as server:
        client = connect(server, "http")
        told = {model["name"]: model.get("reason", "") for model in client.get_model_repository_index()}
        client.close()
    sentences = {
        "newer": "with which the Python backend of this Triton reads wrong numbers: up to Triton 2.51 (24.10) it needs "
        "numpy 1. In the Python of this model run pip install",
        "without": "This model needs vaedeploy in the Python that runs it",
        "damaged": "decoder.onnx.data is altered: its sha256 is",
        "other": "2" * 64,
    }
    for name, sentence in sentences.items():
        assert sentence in told[f"{name}-decode"]


# ------------------------------------------------------------------------------------------------------ the end


def test_sigterm_answers_what_is_in_flight(tmp_path: Path) -> None:
    """Requests wait for others when the signal comes: they are certainly in flight."""
    place = written(tmp_path, "tiny")
    prepare(place, delay=1_000_000)
    latents = [noise(1, CHANNELS, 2, 2 + index % 2, seed=index) for index in range(4)]
    answers: list[Any] = []
    with serving([place], tmp_path / "server.log") as server, connect(server, "grpc") as client:
        stub = server.stub("tiny-decode")
        for latent in latents:
            client.async_infer(
                "tiny-decode",
                callback=lambda result, error: answers.append(error or read(result)),
                **tensors("grpc", {"latent": latent}),
            )
        until(lambda: server.pending("tiny-decode") == 4, "requests wait")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE) == 0
        until(lambda: len(answers) == 4, "requests are answered")
        assert server.get("/v2/health/ready")[0] == 0
        until(lambda: not runs(stub), "the model's process ends")
    with vd.VAE(tmp_path / "bundle" / "tiny") as vae:
        wanted = [expected(vae, "decoder", latent) for latent in latents]
    for answer in answers:
        assert isinstance(answer, dict), answer
    for one in wanted:  # callbacks may come in another order
        assert any(one["image"].tobytes() == answer["image"].tobytes() for answer in answers)


def test_a_killed_stub_is_told_and_the_model_can_be_loaded_again(tmp_path: Path) -> None:
    """docs/services.md says so: Triton does not start it again by itself, and its readiness does not show it."""
    place = written(tmp_path, "tiny")
    prepare(place)
    latent, image = {"latent": noise(1, CHANNELS, 2, 2)}, {"image_u8": photo(1, 8, 8)}
    explicit = ("--model-control-mode", "explicit", "--load-model", "*")
    with serving([place], tmp_path / "server.log", *explicit, patience=2) as server:
        before = infer(server, "http", "tiny-decode", latent)
        os.kill(server.stub("tiny-decode"), signal.SIGKILL)
        for protocol, status in {"http": "500", "grpc": "StatusCode.INTERNAL"}.items():
            with pytest.raises(InferenceServerException, match="Stub process 'tiny-decode_0_0' is not healthy") as told:
                infer(server, protocol, "tiny-decode", latent)
            assert told.value.status() == status
        assert server.get("/v2/models/tiny-decode/ready")[0] == 200
        assert infer(server, "http", "tiny-encode", image).keys() == {"latent_mean", "latent_std"}
        with connect(server, "http") as client:
            client.unload_model("tiny-decode")
            client.load_model("tiny-decode")
        assert_same(infer(server, "http", "tiny-decode", latent), before)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE) == 1
        assert "Exit timeout expired" in server.log.read_text()

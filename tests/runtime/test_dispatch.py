"""Which backend answers, and what runs again where a result is not finite."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from bundle_folders import edit
from engine_files import DECODER
from host_gpu import HostDevice, HostPlan
from tiny_bundle import tiny_bundle
from tiny_inputs import CHANNELS, noise, photo, reopened

from vaedeploy.bundle import Bundle
from vaedeploy.errors import BackendError
from vaedeploy.runtime import BACKENDS, VAE, on_device, onnxruntime_cuda
from vaedeploy.runtime.backends import find_candidates
from vaedeploy.runtime.candidate import Candidate, Settings
from vaedeploy.runtime.dispatch import Dispatch
from vaedeploy.runtime.engine import EngineSession
from vaedeploy.runtime.routes import Half

# Results that are not finite


@pytest.fixture
def overflowing() -> np.ndarray:
    latent = noise(3, CHANNELS, 2, 2)
    latent[1] = 3e38
    return latent


def test_overflow_is_logged_by_default(vae: VAE, overflowing: np.ndarray, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "vaedeploy"):
        image = vae.decode(overflowing)
    assert [record.getMessage() for record in caplog.records] == [
        f"decode gave NaN or infinity in item 1 of a batch of 3 (bundle {vae.path})"
    ]
    np.testing.assert_array_equal(image[[0, 2]], vae.decode(overflowing[[0, 2]]))


def test_overflow_is_raised_if_asked(bundle: Bundle, overflowing: np.ndarray, tmp_path: Path) -> None:
    with VAE(bundle.path, on_nan="raise") as vae, pytest.raises(BackendError) as caught:
        vae.decode(overflowing, output="float")
    assert str(caught.value) == f"decode gave NaN or infinity in item 1 of a batch of 3 (bundle {bundle.path})"
    shutil.copytree(bundle.path, tmp_path / "half")
    edit(Bundle(tmp_path / "half", bundle.manifest), lambda told: told.update(precision="fp16"))
    with VAE(tmp_path / "half", on_nan="raise") as vae, pytest.raises(BackendError) as caught:
        vae.decode(overflowing)
    assert str(caught.value).endswith(". It was computed in fp16: on_nan='rerun' runs such items again in fp32")


@pytest.fixture
def weak(tmp_path: Path) -> Bundle:
    """A bundle of fp16 whose fast decoder overflows where the portable one does not: from 1e19 on, which it squares."""
    bundle = tiny_bundle(tmp_path / "weak", onnxruntime_form=True)
    path = bundle.graph("decoder", "onnxruntime")
    model = onnx.load(path)
    (first,) = (node for node in model.graph.node if "latent" in node.input)
    first.input[list(first.input).index("latent")] = "rooted"
    square = onnx.helper.make_node("Mul", ["latent", "latent"], ["squared"])
    root = onnx.helper.make_node("Sqrt", ["squared"], ["rooted"])
    model.graph.node.insert(0, root)
    model.graph.node.insert(0, square)
    onnx.save(model, path)
    reopened(bundle).close()
    edit(bundle, lambda told: told.update(precision="fp16"))
    return Bundle.open(bundle.path)


def test_what_half_precision_cannot_hold_runs_again_alone(weak: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    latent = np.abs(noise(3, CHANNELS, 2, 2))
    latent[1] = 1e25
    with VAE(weak.path, on_nan="warn") as vae, VAE(weak.path) as rerunning:
        fast = vae.decode(latent, output="float")
        assert not np.isfinite(fast[1]).all()
        caplog.clear()
        assert rerunning.reruns == 0
        image = rerunning.decode(latent, output="float")
        assert (vae.reruns, rerunning.reruns) == (0, 1)
        assert np.isfinite(image).all()
        np.testing.assert_array_equal(
            image[[0, 2]], fast[[0, 2]]
        )  # not run again: the portable form gives the negative
        exact = next(c for c in find_candidates(weak, Settings()) if c.precision == "fp32").open("decoder")
        np.testing.assert_array_equal(image[1], exact.run(["image"], {"latent": latent})[0][1])
    assert [record.getMessage() for record in caplog.records] == [
        f"decode gave NaN or infinity in fp16 in item 1 of a batch of 3 (bundle {weak.path}); run again in fp32"
    ]


def test_what_float32_cannot_hold_either_is_told(weak: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    latent = np.abs(noise(2, CHANNELS, 2, 2))
    latent[0] = 3e38
    with VAE(weak.path) as vae:
        image = vae.decode(latent, output="float")
    assert not np.isfinite(image[0]).all()
    assert np.isfinite(image[1]).all()
    assert [record.getMessage() for record in caplog.records] == [
        f"decode gave NaN or infinity in fp16 in item 0 of a batch of 2 (bundle {weak.path}); run again in fp32",
        f"decode gave NaN or infinity in item 0 of a batch of 2 (bundle {weak.path})",
    ]


# Backends

NO_GPU = pytest.mark.skipif(onnxruntime_cuda.problem() is None, reason="there is a GPU here")
NO_PROVIDER = pytest.mark.filterwarnings("ignore:Specified provider 'CUDAExecutionProvider' is not in available")


def test_the_cpu_answers_where_there_is_no_gpu(bundle: Bundle) -> None:
    with VAE(bundle.path) as vae, VAE(bundle.path, backend="onnxruntime-cpu") as chosen:
        assert chosen.backend == "onnxruntime-cpu"
        assert vae.backend in BACKENDS


@NO_GPU
def test_a_backend_that_was_asked_for_does_not_fall_back(bundle: Bundle) -> None:
    with pytest.raises(BackendError, match=r"no CUDA provider|no CUDA device"):
        VAE(bundle.path, backend="onnxruntime-cuda")


@NO_GPU
@NO_PROVIDER
def test_a_provider_that_does_not_start_is_not_taken_for_a_gpu(bundle: Bundle) -> None:
    """ONNX Runtime itself goes on, on the CPU."""
    with pytest.raises(BackendError, match=r"CUDA provider did not start on device 0 for .*decoder.onnx"):
        onnxruntime_cuda.Session(bundle.graph("decoder"))


@NO_GPU
@NO_PROVIDER
def test_a_backend_that_cannot_load_a_graph_hands_over_once(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    with VAE(bundle.path) as vae:
        cuda = Candidate("onnxruntime-cuda", "fp32", lambda part: onnxruntime_cuda.Session(bundle.graph(part)))
        vae._dispatch = Dispatch(
            bundle, [cuda, *find_candidates(bundle, Settings(backend="onnxruntime-cpu"))], True, "rerun"
        )
        assert vae.backend == "onnxruntime-cuda"
        for _ in range(2):
            assert vae.decode(noise(1, CHANNELS, 2, 2)).shape == (1, 8, 8, 3)
        assert vae.backend == "onnxruntime-cpu"
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.startswith(
        "onnxruntime-cuda cannot be used, so onnxruntime-cpu is used instead: ONNX Runtime's CUDA provider did "
    )


def test_overflow_of_the_encoder_is_seen(tmp_path: Path) -> None:
    image = np.stack([np.full((8, 8, 3), 128, np.uint8), photo(8, 8)])
    image[0, ..., 0] = 127
    path = tiny_bundle(tmp_path / "tiny", gain=1e39, sampled=False).path
    with VAE(path, on_nan="raise") as vae, pytest.raises(BackendError) as caught:
        vae.encode(image)
    assert str(caught.value) == f"encode gave NaN or infinity in item 1 of a batch of 2 (bundle {path})"


# --------------------------------------------------------------------------------------- arrays in the device's memory


@pytest.fixture
def device(gpu: HostDevice, monkeypatch: pytest.MonkeyPatch) -> HostDevice:
    """The stand-in, and arrays on it. What the VAE gives is told as (array, size, axes)."""
    monkeypatch.setattr(on_device, "as_device_array", lambda value, *_: value.array)
    monkeypatch.setattr(on_device, "to_caller", lambda array, size=None, axes=None: (array, size, axes))
    return gpu


def test_items_on_the_device_are_run_again_in_place(device: HostDevice, engine_bundle: Bundle) -> None:
    """By a candidate that takes such arrays too; the other items stay as they are."""
    engines = {precision: HostPlan(engine_bundle, DECODER) for precision in ("fp16", "fp32")}
    half = Half(engine_bundle, "decoder", "tensorrt-rtx", (DECODER,))
    broken = engines["fp16"].session.run

    def overflow(names: list[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        results = broken(names, feeds)
        for name, result in zip(names, results, strict=True):
            if name == "image":
                result[1] = np.nan
            if name == "finite":
                result[1] = False
        return results

    engines["fp16"].session = SimpleNamespace(run=overflow)  # type: ignore[assignment]
    candidates = [
        Candidate("tensorrt-rtx", precision, lambda part, plan=plan: EngineSession(half, device, lambda name: plan))  # type: ignore[arg-type,misc]
        for precision, plan in engines.items()
    ]
    halves = Dispatch(engine_bundle, candidates, may_fall_back=False, on_nan="rerun")
    latent = noise(2, 2, 2, 2)
    place = device.put(np.zeros((2, 3, 8, 8), np.float32))
    halves.run("decoder", ["image", "finite"], {"latent": device.put(latent)}, {"image": place})
    with VAE(engine_bundle.path, "onnxruntime-cpu") as cpu:
        np.testing.assert_array_equal(place.on_host(), cpu.decode(latent, output="float"))
    assert [event for event in engines["fp32"].events if event.startswith("shape")] == ["shape 0 1x8x8"]


def test_a_deviation_that_is_not_finite_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With sample=True the latent is made of mean and deviation; exp(100) is finite in no float32."""
    bundle = tiny_bundle(tmp_path / "tiny", gain=1e4)
    image = photo(2, 8, 8)
    image[0] = 127
    with VAE(bundle.path) as vae, caplog.at_level(logging.WARNING, "vaedeploy"):
        assert np.isfinite(vae.encode(image)).all()
        assert not caplog.records
        sampled = vae.encode(image, sample=True, seed=0)
    assert not np.isfinite(sampled[1]).all()
    assert "encode gave NaN or infinity in item 1 of a batch of 2" in caplog.text

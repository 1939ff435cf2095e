"""ONNX Runtime's CUDA provider behind the runtime, on a real device. Skipped where there is none."""

from __future__ import annotations

import json
import logging
import multiprocessing
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import on_gpu
import pytest
import torch
from tiny_bundle import tiny_bundle
from tiny_inputs import CHANNELS, noise, photo

from vaedeploy.bundle import Bundle
from vaedeploy.errors import BackendError, ImageError
from vaedeploy.pipeline.export import export_vae
from vaedeploy.runtime import VAE, UnverifiedBundleWarning, onnxruntime_cuda
from vaedeploy.source import load_reference
from vaedeploy.values.kinds import PARTS, Part
from vaedeploy.verify.backend import TorchTruth

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(onnxruntime_cuda.problem() is not None, reason=str(onnxruntime_cuda.problem())),
]

FP32 = 1e-4
"""Relative L2 between the GPU's float32 and the CPU's. TF32 is off: with it, 1e-3 is to be expected."""

GRAPHS = {"enable_cuda_graph": "1"}

SHAPES_ONLY = 1024
"""Bytes. What works on shapes gives less; the smallest tensor with values of an image, the latent, is larger."""


@pytest.fixture(scope="module", params=["fp16", "fused", "fp32"])
def bundle(request: pytest.FixtureRequest, made_once: Callable[..., Path]) -> Bundle:
    """The demo VAE, not verified. fused: fp16 with the form of the provider's own operators."""

    def make(folder: Path) -> None:
        fused = request.param == "fused"
        precision = "fp16" if fused else request.param
        forms = ["onnxruntime-cuda"] if fused else []
        export_vae("demo", out=folder / "demo", precision=precision, forms=forms, verify=False)

    return Bundle.open(made_once(f"gpu {request.param}", make) / "demo")


def form_of(bundle: Bundle) -> str:
    return "onnxruntime-cuda" if "onnxruntime-cuda" in bundle.manifest.graphs["decoder"] else "onnxruntime"


def opened(bundle: Bundle, backend: str | None = "onnxruntime-cuda", **options: Any) -> VAE:
    """The bundle in the runtime; that it is unverified is known."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnverifiedBundleWarning)
        return VAE(bundle.path, backend, **options)


@pytest.fixture(scope="module")
def vae(bundle: Bundle) -> Iterator[VAE]:
    with opened(bundle) as made:
        yield made


@pytest.fixture(scope="module")
def cpu(bundle: Bundle) -> Iterator[VAE]:
    with opened(bundle, "onnxruntime-cpu") as made:
        yield made


def latents(bundle: Bundle, batch: int, height: int, width: int) -> np.ndarray:
    shape = batch, bundle.manifest.latent.channels, height, width
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 8, 8), (3, 9, 11), (1, 64, 64)])
def test_the_gpu_computes_what_the_cpu_does(
    bundle: Bundle, vae: VAE, cpu: VAE, batch: int, height: int, width: int
) -> None:
    limit = on_gpu.FP16 if bundle.manifest.precision == "fp16" else FP32
    latent = latents(bundle, batch, height, width)
    expected = cpu.decode(latent, output="float")
    assert on_gpu.relative_l2(vae.decode(latent, output="float"), expected) < limit
    image = cpu.decode(latent)
    assert np.abs(vae.decode(latent).astype(int) - image).max() <= max(1, 255 * limit * 4)
    assert on_gpu.relative_l2(vae.encode(image), cpu.encode(image)) < limit


def test_a_sample_is_the_one_of_the_cpu(bundle: Bundle, vae: VAE, cpu: VAE) -> None:
    """Of arrays in the host's memory; from the GPU's memory nothing is sampled."""
    image = cpu.decode(latents(bundle, 1, 8, 8))
    found, expected = (each.encode(image, sample=True, seed=3) for each in (vae, cpu))
    assert on_gpu.relative_l2(found, expected) < on_gpu.FP16
    with pytest.raises(ImageError, match="an image in the GPU's memory is encoded without sample, seed and pad"):
        vae.encode(torch.zeros(1, 3, 64, 64, device="cuda"), sample=True)


def test_tf32_is_off_in_float32_alone(bundle: Bundle) -> None:
    """Without it, ONNX Runtime computes convolutions of half precision without tensor cores."""
    precision = bundle.manifest.precision
    session = onnxruntime_cuda.Session(bundle.graph("decoder", form_of(bundle)), precision=precision)
    taken = session._by_size._first.get_provider_options()["CUDAExecutionProvider"]["use_tf32"]
    assert taken == ("0" if precision == "fp32" else "1")


@pytest.mark.parametrize("part", PARTS)
def test_nothing_large_is_computed_on_the_cpu_or_copied(bundle: Bundle, part: str, tmp_path: Path) -> None:
    """What is left there works on shapes. The rest would travel between the two in every call."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
    options.log_severity_level = 3
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(bundle.graph(part, form_of(bundle)), options, providers=providers)
    given = latents(bundle, 2, 8, 8) if part == "decoder" else np.zeros((2, 3, 64, 64), np.float32)
    session.run(None, {session.get_inputs()[0].name: given})
    events = json.loads(Path(session.end_profiling()).read_text())
    ran = [event["args"] for event in events if event.get("cat") == "Node" and "output_size" in event["args"]]
    # Softmax is in the body of attention's loop.
    layers = {"NhwcConv", "MultiHeadAttention"} if form_of(bundle) == "onnxruntime-cuda" else {"Conv", "Softmax"}
    assert layers <= {node["op_name"] for node in ran}, "the profile lacks nodes"
    travels = {
        (node["op_name"], node["provider"], node["output_size"])
        for node in ran
        if (node["provider"] == "CPUExecutionProvider" or node["op_name"].startswith("Memcpy"))
        and int(node["output_size"]) > SHAPES_ONLY
    }
    assert not travels


def test_arrays_of_pytorch_stay_on_the_gpu(bundle: Bundle, vae: VAE) -> None:
    on_gpu.check_arrays_of_pytorch(vae, latents(bundle, 2, 16, 16))


def test_a_thread_of_its_own(bundle: Bundle, vae: VAE) -> None:
    on_gpu.check_a_thread_of_its_own(vae, latents(bundle, 2, 16, 16))


def test_a_result_outlives_the_call_that_reads_it(bundle: Bundle, vae: VAE) -> None:
    on_gpu.check_a_result_outlives_what_reads_it(vae, latents(bundle, 2, 16, 16))


def test_work_of_another_stream_is_waited_for(bundle: Bundle, vae: VAE) -> None:
    on_gpu.check_another_stream_is_waited_for(vae, latents(bundle, 2, 16, 16))


def test_the_callers_array_is_not_written_too_early(bundle: Bundle, vae: VAE) -> None:
    on_gpu.check_out_is_not_written_too_early(vae, latents(bundle, 2, 16, 16))


def test_a_bundle_for_bytes_takes_them_from_the_gpu(tmp_path: Path) -> None:
    made = tiny_bundle(tmp_path / "tiny", image_input="uint8")
    pixels = photo(2, 16, 24)
    with opened(made) as vae, opened(made, "onnxruntime-cpu") as cpu:
        found = on_gpu.fetched(vae.encode(torch.from_numpy(pixels).cuda()))
        assert on_gpu.relative_l2(found, cpu.encode(pixels)) < FP32


@pytest.mark.parametrize("offset", [1, 2])
def test_a_view_into_the_middle_of_a_tensor(tmp_path: Path, offset: int) -> None:
    """Its address is no multiple of 16 bytes. It is tried on a small graph whose first and last layers are
    convolutions.
    """
    made = tiny_bundle(tmp_path / "tiny")

    def middle(array: np.ndarray) -> Any:
        """The array in the middle of a tensor of PyTorch's."""
        whole = torch.zeros(array.size + offset, dtype=torch.from_numpy(array).dtype, device="cuda")
        view = whole[offset:].view(array.shape)
        view.copy_(torch.from_numpy(array))
        assert view.data_ptr() % 16 != 0
        return view

    latent = noise(2, CHANNELS, 4, 4)
    with opened(made) as vae, opened(made, "onnxruntime-cpu") as cpu:
        raw, image = cpu.decode(latent, output="float"), cpu.decode(latent)
        assert on_gpu.relative_l2(on_gpu.fetched(vae.decode(middle(latent), output="float")), raw) < FP32
        out = middle(np.zeros_like(raw))
        assert vae.decode(middle(latent), output="float", out=out) is out
        assert on_gpu.relative_l2(out.cpu().numpy(), raw) < FP32
        out = middle(np.zeros_like(image))
        assert vae.decode(middle(latent), out=out) is out
        assert on_gpu.near(out.cpu().numpy(), image)
        pixels = np.clip(raw, -1, 1)
        assert on_gpu.relative_l2(on_gpu.fetched(vae.encode(middle(pixels))), cpu.encode(pixels)) < FP32


def test_cuda_graphs_give_what_runs_without_them_do(bundle: Bundle, vae: VAE) -> None:
    """Other inputs than those that were recorded, from both memories, sizes in turns, and threads of their own."""
    if form_of(bundle) != "onnxruntime-cuda":
        with pytest.raises(BackendError, match=r"CUDA graphs .* are for the form onnxruntime-cuda"):
            opened(bundle, provider_options=GRAPHS)
        return
    given = [latents(bundle, *size) + np.float32(n / 8) for n in range(4) for size in ((1, 8, 8), (2, 8, 12))]
    with opened(bundle, provider_options=GRAPHS) as graphs:

        def check(latent: np.ndarray) -> None:
            assert (
                on_gpu.relative_l2(graphs.decode(latent).astype(float), vae.decode(latent).astype(float)) < on_gpu.FP16
            )
            there = torch.from_numpy(latent).cuda()
            raw = vae.decode(latent, output="float")
            assert on_gpu.relative_l2(on_gpu.fetched(graphs.decode(there, output="float")), raw) < on_gpu.FP16
            out = torch.empty(raw.shape, device="cuda")
            assert graphs.decode(there, output="float", out=out) is out
            assert on_gpu.relative_l2(out.cpu().numpy(), raw) < on_gpu.FP16
            photo = np.clip(raw, -1, 1)
            assert on_gpu.relative_l2(graphs.encode(photo), vae.encode(photo)) < on_gpu.FP16

        for latent in given:
            check(latent)
        (decoder,) = (runner for (_, part), runner in graphs._dispatch._runners.items() if part == "decoder")
        sessions = decoder._whole._by_size._sessions.values()
        assert [len([one for one in session._recordings.values() if one]) for session in sessions] == [2, 2]
        wanted = [vae.decode(latent).astype(float) for latent in given]
        with ThreadPoolExecutor(3) as threads:  # arrays of the host's: PyTorch's calls would meet a recording
            for found, expected in zip(threads.map(graphs.decode, given * 3), wanted * 3, strict=True):
                assert on_gpu.relative_l2(found.astype(float), expected) < on_gpu.FP16
        torch.empty(256 * 2**20, dtype=torch.uint8, device="cuda")  # PyTorch allocates beside what was recorded
        check(given[0])


@pytest.mark.parametrize("graphs", [False, True])
def test_nan_beside_cuda_graphs(bundle: Bundle, cpu: VAE, graphs: bool) -> None:
    """What is run again in float32 is not recorded, and the next call is right."""
    if form_of(bundle) != "onnxruntime-cuda":
        pytest.skip("CUDA graphs are for the fused form")
    latent = latents(bundle, 2, 8, 8)
    bad = latent.copy()
    bad[1] = 3e5
    with opened(bundle, provider_options=GRAPHS if graphs else None) as vae:
        for _ in range(3):
            for each in (latent, bad):
                found, expected = vae.decode(each, output="float"), cpu.decode(each, output="float")
                assert on_gpu.relative_l2(found, expected) < on_gpu.FP16


def test_many_threads(bundle: Bundle, vae: VAE) -> None:
    on_gpu.check_many_threads(vae, [latents(bundle, 1, 8 + n, 8) for n in range(3)])


def test_sizes_in_turns(bundle: Bundle) -> None:
    """Each of the sizes used last has a session of its own, so that nothing is planned again."""
    given = [latents(bundle, 1, 8 + n, 8) for n in range(onnxruntime_cuda.SIZES_AT_ONCE + 1)]
    with opened(bundle) as vae:
        first = [vae.decode(latent) for latent in given]
        (rows,) = vae._dispatch._runners.values()
        runner = rows._whole
        assert len(runner._by_size._sessions) == onnxruntime_cuda.SIZES_AT_ONCE
        kept = dict(runner._by_size._sessions)
        for latent, expected in zip(given[1:] * 2, first[1:] * 2, strict=True):
            assert on_gpu.near(vae.decode(latent), expected)
        assert dict(runner._by_size._sessions) == kept


def test_another_gpu_or_stream_is_refused(bundle: Bundle, vae: VAE) -> None:
    on_gpu.check_another_gpu_or_stream_is_refused(vae, latents(bundle, 1, 8, 8))


def test_nan_is_run_again_in_fp32(bundle: Bundle, vae: VAE, cpu: VAE, caplog: pytest.LogCaptureFixture) -> None:
    """Only the item with NaN, from either memory. Half precision does not reach 300,000; float32 bundles do."""
    latent = latents(bundle, 3, 8, 8)
    latent[1] = 3e5
    half = bundle.manifest.precision == "fp16"
    expected = cpu.decode(latent, output="float")
    assert np.isfinite(expected).all()
    given = torch.from_numpy(latent).cuda()
    out = torch.full(expected.shape, torch.nan, device="cuda")
    caplog.clear()
    found = [
        vae.decode(latent, output="float"),
        on_gpu.fetched(vae.decode(given, output="float")),
        vae.decode(given, output="float", out=out).cpu().numpy(),
    ]
    again = [message for message in caplog.messages if "run again in fp32" in message]
    assert len(again) == (3 if half else 0)
    assert all("in item 1 of a batch of 3" in message for message in again)
    for image in found:
        assert on_gpu.relative_l2(image[1], expected[1]) < FP32  # the CPU computed this one in float32 too
        assert on_gpu.relative_l2(image[[0, 2]], expected[[0, 2]]) < (on_gpu.FP16 if half else FP32)


def test_the_gpu_is_the_first_choice(bundle: Bundle) -> None:
    with opened(bundle, None) as vae:
        vae.decode(latents(bundle, 1, 8, 8))
        assert vae.backend == "onnxruntime-cuda"


def test_a_provider_that_does_not_start(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    """The CPU answers in its place unless it was asked for by name."""
    latent, wrong = latents(bundle, 1, 8, 8), {"device_id": "63"}
    with opened(bundle, provider_options=wrong) as vae, pytest.raises(BackendError, match=r"decoder.*\.onnx"):
        vae.decode(latent)
    with caplog.at_level(logging.WARNING), opened(bundle, None, provider_options=wrong) as vae:
        assert vae.decode(latent).shape == (1, 64, 64, 3)
        assert vae.backend == "onnxruntime-cpu"
    assert any("onnxruntime-cuda cannot be used, so onnxruntime-cpu is used" in message for message in caplog.messages)


def test_memory_of_results_comes_back(bundle: Bundle, vae: VAE) -> None:
    on_gpu.check_memory_of_results_comes_back(vae, latents(bundle, 1, 64, 64))


def test_a_closed_session_gives_its_memory_back(bundle: Bundle) -> None:
    latent = latents(bundle, 1, 64, 64)
    levels = []
    for _ in range(3):
        with opened(bundle) as fresh:
            fresh.decode(latent)
            torch.cuda.synchronize()
            held, _ = torch.cuda.mem_get_info()
        torch.cuda.synchronize()
        free, _ = torch.cuda.mem_get_info()
        levels.append(free)
        assert free > held, "closing it freed nothing"
    assert levels[0] - levels[2] < 64 * 2**20, "each one that is opened and closed keeps memory"


def whole_in_fp32(bundle: Bundle, part: Part, outputs: list[str], given: np.ndarray) -> list[np.ndarray]:
    """What the portable graph computes on the GPU, without a limit of memory. It runs item by item: for two items of
    this size its softmax has more elements than ONNX Runtime's kernel can number, and gives wrong images.
    """
    session = onnxruntime_cuda.Session(bundle.graph(part, "portable"), precision="fp32")
    (name,) = session.inputs
    found = [session.run(outputs, {name: item[None]}) for item in given]
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


@pytest.mark.parametrize("on_device", [False, True])
def test_a_size_that_takes_too_much_memory_runs_by_rows(
    bundle: Bundle, caplog: pytest.LogCaptureFixture, on_device: bool
) -> None:
    """In float32, whatever the bundle's precision. Smaller sizes run whole before and after it."""
    large, small = latents(bundle, 2, 256, 192), latents(bundle, 1, 8, 8)
    with opened(bundle, provider_options={"gpu_mem_limit": str(384 * 2**20)}) as vae:
        before = vae.decode(small)
        given = torch.from_numpy(large).cuda() if on_device else large
        with caplog.at_level(logging.WARNING):
            raw, image = vae.decode(given, output="float"), vae.decode(given)
        assert "It is computed by rows instead" in caplog.text
        found = (on_gpu.fetched(raw), on_gpu.fetched(image)) if on_device else (raw, image)
        wanted, levels = whole_in_fp32(bundle, "decoder", ["image", "image_u8"], large)
        assert on_gpu.relative_l2(found[0], wanted) < FP32
        assert on_gpu.near(found[1], levels)
        assert on_gpu.near(vae.decode(small), before)


def test_an_encoder_by_rows(bundle: Bundle) -> None:
    photos = np.random.default_rng(0).uniform(-1, 1, (1, 3, 2048, 2048)).astype(np.float32)
    with opened(bundle, provider_options={"gpu_mem_limit": str(384 * 2**20)}) as vae:
        found = vae.encode(photos)
    (wanted,) = whole_in_fp32(bundle, "encoder", ["latent_mean"], photos)
    assert on_gpu.relative_l2(found, wanted) < FP32


def test_a_full_gpu_and_then_another_call(bundle: Bundle) -> None:
    small, large = latents(bundle, 1, 8, 8), latents(bundle, 4, 96, 96)
    said = "not enough memory: give a smaller batch or size|left on the GPU|for a result cannot be had"
    on_gpu.check_out_of_memory_and_then_another_call(lambda: opened(bundle), small, large, said, by_rows=True)


def _decode_in_child(vae: VAE, latent: np.ndarray, answers: multiprocessing.Queue[str]) -> None:
    try:
        vae.decode(latent)
        answers.put("no error")
    except BackendError as error:
        answers.put(str(error))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_is_told(bundle: Bundle, vae: VAE) -> None:
    latent = latents(bundle, 1, 8, 8)
    vae.decode(latent)
    fork = multiprocessing.get_context("fork")
    answers: multiprocessing.Queue[str] = fork.Queue()
    child = fork.Process(target=_decode_in_child, args=(vae, latent, answers))
    child.start()
    try:
        assert answers.get(timeout=20).startswith("this process was forked after the GPU was used")
    finally:
        child.kill()
        child.join()


LEFT_OPEN = """
import sys, threading, warnings
import numpy as np, torch
from vaedeploy.runtime import VAE
warnings.simplefilter("ignore")
vae = VAE(sys.argv[1], "onnxruntime-cuda")
latent = torch.zeros(1, vae.latent.channels, 8, 8, device="cuda")
kept = [vae.decode(latent), torch.from_dlpack(vae.decode(latent)), vae.decode(latent.cpu().numpy())]
thread = threading.Thread(target=lambda: kept.append(vae.decode(latent)))
thread.start()
thread.join()
print(len(kept))
"""


def test_a_process_ends_with_everything_open(bundle: Bundle) -> None:
    """Results, a VAE and PyTorch's tensors are let go of when CUDA may be gone already."""
    command = [sys.executable, "-c", LEFT_OPEN, str(bundle.path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stdout) == (0, "4\n"), ended.stderr
    assert "Traceback" not in ended.stderr
    assert "Exception ignored" not in ended.stderr


def test_the_reference_on_the_gpu_is_the_one_of_the_cpu(bundle: Bundle, vae: VAE) -> None:
    """PyTorch in float32 on the GPU, which verifies backends with ``--weights``, against this provider."""
    truth = TorchTruth(load_reference("demo"), 0)
    latent = latents(bundle, 1, 64, 64)
    limit = on_gpu.FP16 if bundle.manifest.precision == "fp16" else FP32
    expected = truth.decode(latent)
    assert on_gpu.relative_l2(vae.decode(latent, output="float"), expected) < limit
    pixels = np.clip(np.moveaxis(expected, 1, 3) * 127.5 + 127.5, 0, 255).astype(np.uint8)
    assert on_gpu.relative_l2(vae.encode(pixels), next(iter(truth.encode(pixels).values()))) < limit


@pytest.mark.full
def test_full_size(tmp_path: Path) -> None:
    """Seeded weights, 512x512, in fp16, against PyTorch in float32 on the GPU. Its export takes most of the time."""
    reference = load_reference("mse840k", "random:0")
    made = export_vae(reference, out=tmp_path / "mse840k", precision="fp16", verify=False)
    latent = latents(made, 1, 64, 64)
    expected = TorchTruth(reference, 0).decode(latent)
    with opened(made) as vae:
        assert on_gpu.relative_l2(vae.decode(latent, output="float"), expected) < on_gpu.FP16

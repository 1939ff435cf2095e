"""OpenVINO: what it computes, in which precision, when it is preferred, and what it leaves behind."""

from __future__ import annotations

import gc
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest
from bit_flips import flip
from tiny_bundle import tiny_bundle
from tiny_inputs import CHANNELS, noise, photo, run_python

from vaedeploy.bundle import Bundle
from vaedeploy.errors import BackendError, BundleError, InputError
from vaedeploy.images.pixels import relative_errors
from vaedeploy.pipeline.pace import measure_pace
from vaedeploy.runtime import VAE, openvino
from vaedeploy.runtime.backends import find_candidates
from vaedeploy.runtime.candidate import Settings
from vaedeploy.runtime.verdicts import report_name
from vaedeploy.system.installs import install_command
from vaedeploy.system.interrupts import end_calls
from vaedeploy.system.machine import cpu_flags, cpu_name, usable_cores
from vaedeploy.system.processes import native_call

pytest.importorskip("openvino")

BFLOAT16 = pytest.mark.skipif(not openvino.has_bfloat16(), reason="this CPU has no instructions for bfloat16")


@pytest.fixture(scope="module")
def opened(bundle: Bundle) -> VAE:
    return VAE(bundle.path, "openvino")


@pytest.mark.parametrize("half", ["float", "uint8"])
def test_it_computes_what_onnx_runtime_computes(bundle: Bundle, bytes_bundle: Bundle, half: str) -> None:
    path = (bundle if half == "float" else bytes_bundle).path
    image = photo(2, 8, 12)
    with VAE(path, "openvino") as vae, VAE(path, "onnxruntime-cpu") as plain:
        moments, expected = vae.encode_moments(image), plain.encode_moments(image)
        np.testing.assert_allclose(moments.mean, expected.mean, atol=1e-6)
        np.testing.assert_allclose(moments.std, expected.std, atol=1e-6)
        latent = expected.mean
        floats = vae.decode(latent, output="float")
        np.testing.assert_allclose(floats, plain.decode(latent, output="float"), atol=1e-6)
        assert np.abs(vae.decode(latent).astype(int) - plain.decode(latent)).max() <= 1
        assert (vae.backend, vae.precision, vae.on_gpu) == ("openvino", "fp32", False)


@BFLOAT16
def test_bfloat16_is_computed_in_only_where_it_is_asked_for(demo_bundle: Bundle) -> None:
    latent = noise(1, 16, 8, 8)
    with VAE(demo_bundle.path, "onnxruntime-cpu") as plain:
        expected = plain.decode(latent, output="float")
    far = {}
    for precision in (None, "fp32", "bf16"):
        with VAE(demo_bundle.path, "openvino", precision=precision) as vae:
            far[precision] = relative_errors(vae.decode(latent, output="float"), expected)["rel_l2"]
    assert far[None] == far["fp32"] < 5e-6 < 1e-3 < far["bf16"] < 0.03


def test_what_overflows_is_told(opened: VAE, caplog: pytest.LogCaptureFixture) -> None:
    latent = noise(2, CHANNELS, 2, 2)
    latent[1] = 3e38
    image = opened.decode(latent, output="float")
    assert np.isfinite(image[0]).all()
    assert not np.isfinite(image[1]).all()
    assert any("decode gave NaN or infinity in item 1 of a batch of 2" in text for text in caplog.messages)
    assert opened.compute("decoder", latent, ["finite"])["finite"].tolist() == [True, False]


@BFLOAT16
def test_what_is_not_finite_in_bfloat16_is_computed_again_in_float32(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    """bfloat16 has float32's range: here it overflows in both."""
    latent = noise(2, CHANNELS, 2, 2)
    latent[1] = 3e38
    told = "decode gave NaN or infinity {}in item 1 of a batch of 2"
    with VAE(bundle.path, "openvino", precision="bf16") as vae:
        images = vae.decode(latent, output="float")
        assert np.isfinite(images).all(axis=(1, 2, 3)).tolist() == [True, False]
        assert vae.reruns == 1
    assert any(text.startswith(told.format("in bf16 ")) and "again in fp32" in text for text in caplog.messages)
    with (
        VAE(bundle.path, "openvino", precision="bf16", on_nan="raise") as vae,
        pytest.raises(BackendError, match=f"^{told.format('')} .* It was computed in bf16: on_nan='rerun' runs"),
    ):
        vae.decode(latent)


def test_results_go_into_the_array_that_is_given(opened: VAE) -> None:
    latent = noise(1, CHANNELS, 3, 2)
    expected = opened.decode(latent)
    out = np.zeros_like(expected)
    assert opened.decode(latent, out=out) is out
    np.testing.assert_array_equal(out, expected)
    opened.decode(noise(1, CHANNELS, 3, 2, seed=1))
    np.testing.assert_array_equal(out, expected)  # which no later call writes into


def test_arrays_that_may_not_be_written_to(opened: VAE) -> None:
    latent = noise(1, CHANNELS, 3, 2)
    expected = opened.decode(latent)
    latent.flags.writeable = False
    np.testing.assert_array_equal(opened.decode(latent), expected)
    np.testing.assert_array_equal(opened.decode(np.frombuffer(latent.tobytes(), "f4").reshape(latent.shape)), expected)


def test_threads_that_open_the_first_one_at_the_same_time(bundle: Bundle) -> None:
    script = f"""
import threading
from concurrent.futures import ThreadPoolExecutor
from vaedeploy.runtime import VAE
together = threading.Barrier(4)
def opened(_):
    together.wait()
    return VAE({str(bundle.path)!r}, "openvino").backend
with ThreadPoolExecutor(4) as pool:
    print(*pool.map(opened, range(4)))
"""
    assert run_python(script).stdout.split() == ["openvino"] * 4


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=BFLOAT16)])
def test_threads_that_call_with_several_sizes_get_their_own_results(demo_bundle: Bundle, precision: str) -> None:
    """Each call gives its memory back while others run."""
    latents = [noise(1, 16, 2 + index % 3, 3, seed=index) for index in range(12)]
    with VAE(demo_bundle.path, "openvino", precision=precision) as vae:  # type: ignore[arg-type]
        alone = [vae.decode(latent) for latent in latents]
        for _ in range(3):
            with ThreadPoolExecutor(6) as pool:
                together = list(pool.map(vae.decode, latents))
            for one, other in zip(alone, together, strict=True):
                np.testing.assert_array_equal(one, other)


def _decode_and_tell(vae: VAE, latent: np.ndarray, queue: multiprocessing.Queue) -> None:
    try:
        queue.put(vae.decode(latent).tolist())
    except BackendError as error:
        queue.put(str(error))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_forked_process_is_refused_and_ends_and_a_new_one_computes(opened: VAE, method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip("this system has no fork")
    latent = noise(1, CHANNELS, 2, 2)
    expected = opened.decode(latent)
    processes = multiprocessing.get_context(method)
    queue = processes.Queue()
    child = processes.Process(target=_decode_and_tell, args=(opened, latent, queue))
    child.start()
    told = queue.get(timeout=60)
    child.join(60)
    assert child.exitcode == 0
    if method == "fork":
        assert told.startswith("this process was forked after OpenVINO was used")
    else:
        np.testing.assert_array_equal(told, expected)


def test_a_call_ends_where_a_command_is_asked_to_stop(demo_bundle: Bundle) -> None:
    with VAE(demo_bundle.path, "openvino", threads=1, max_memory=1 << 50) as vae:
        vae.decode(noise(1, 16, 2, 2))
        timer = threading.Timer(0.3, end_calls)
        timer.start()
        with pytest.raises(BackendError, match=r"(?s)OpenVINO failed in .* was canceled"):
            vae.decode(noise(1, 16, 160, 160))
        timer.join()
        assert vae.decode(noise(1, 16, 2, 2)).shape == (1, 16, 16, 3)


def test_an_altered_graph_is_not_run(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "tiny")
    with VAE(bundle.path, "openvino") as vae:
        flip(bundle.graph("decoder"), 99)
        with pytest.raises(BundleError, match=r"decoder\.onnx\S* is altered"):
            vae.decode(noise(1, CHANNELS, 2, 2))


def test_a_folder_for_temporary_files_that_cannot_be_written(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    with (
        VAE(bundle.path, "openvino") as vae,
        pytest.raises(
            BackendError, match=r"^OpenVINO reads decoder\S* from .* Set TMPDIR to a folder that has 0\.\d MB"
        ),
    ):
        vae.decode(noise(1, CHANNELS, 2, 2))


def test_a_process_ends_while_a_graph_is_compiled_again(bundle: Bundle) -> None:
    """A daemon thread is inside a call when the program ends, and the call has to compile."""
    script = f"""
import threading
import time
from pathlib import Path
import numpy as np
from vaedeploy.runtime import openvino
session = openvino.Session(Path({str(bundle.graph("decoder"))!r}))
session._model = None  # as after a run that failed
started, compile_ = threading.Event(), session._compile
def late():
    started.set()
    time.sleep(0.5)
    return compile_()
session._compile = late
latent = np.zeros((1, {CHANNELS}, 2, 2), np.float32)
threading.Thread(target=session.run, args=(["image"], {{"latent": latent}}), daemon=True).start()
started.wait()
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.parametrize("output", ["image", "none"])
def test_no_request_is_left_when_a_call_ends(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, output: str) -> None:
    """The end of a program waits for calls. A daemon thread that destroys a request later aborts the process."""
    left, request = [], openvino.load_library().InferRequest

    @contextmanager
    def watched() -> Iterator[None]:
        with native_call():
            try:
                yield
            finally:
                left.append(sum(issubclass(type(thing), request) for thing in gc.get_objects()))

    session = openvino.Session(bundle.graph("decoder"))
    monkeypatch.setattr(openvino, "native_call", watched)
    with (
        nullcontext()
        if output == "image"
        else pytest.raises(BackendError, match=r"(?s)failed in .* name none was not found")
    ):
        session.run([output], {"latent": noise(1, CHANNELS, 2, 2)})
    assert left == [0]


def test_a_graph_is_read_to_its_end_where_the_program_ends_meanwhile(bundle: Bundle) -> None:
    """Folders of ``TemporaryDirectory`` are gone before the end waits for daemon threads."""
    script = f"""
import atexit
import threading
import time
from pathlib import Path
from vaedeploy.bundle import Bundle
from vaedeploy.runtime import openvino
ending = threading.Event()
def end():
    print("ending")
    ending.set()
atexit.register(end)  # as a TemporaryDirectory has it, by a weakref.finalize
bundle, started = Bundle.open({str(bundle.path)!r}), threading.Event()
core = openvino._core()
class Late:
    def read_model(self, path):
        started.set()
        ending.wait(60)
        time.sleep(0.5)
        model = core.read_model(path)
        print("read")
        return model
    compile_model = core.compile_model
openvino._core = Late
options = {{"read": lambda: bundle.read_graph("decoder")}}
threading.Thread(target=openvino.Session, args=(bundle.graph("decoder"),), kwargs=options, daemon=True).start()
started.wait()
"""
    assert run_python(script).stdout.split() == ["ending", "read"]


def test_threads_are_passed_on_and_not_pinned(bundle: Bundle) -> None:
    cores = usable_cores()
    for threads, total, calls in ((1, cores, cores), (cores, cores, 1), (None, cores, 1)):
        model = openvino.Session(bundle.graph("decoder"), threads=threads)._model
        assert model.get_property("INFERENCE_NUM_THREADS") == total
        assert model.get_property("NUM_STREAMS") == calls
        assert model.get_property("ENABLE_CPU_PINNING") is False


@pytest.mark.parametrize("on_disk", [False, True])
def test_what_memory_does_not_hold_is_computed_by_rows(demo_bundle: Bundle, tmp_path: Path, on_disk: bool) -> None:
    latent = noise(1, 16, 32, 32)
    workspace = tmp_path if on_disk else None
    with VAE(demo_bundle.path, "onnxruntime-cpu") as plain:
        expected = plain.decode(latent, output="float")
    with VAE(demo_bundle.path, "openvino", max_memory=1 << 50, workspace=workspace) as vae:
        plan = vae.plan(256, 256)["decoder"]
        assert plan.way == "untiled"
    with VAE(demo_bundle.path, "openvino", max_memory=plan.least, workspace=workspace) as small:
        rows = small.plan(256, 256)["decoder"]
        assert (rows.way, rows.disk > 0) == ("rows", on_disk)
        assert relative_errors(small.decode(latent, output="float"), expected)["rel_l2"] < 5e-6
    assert not any(tmp_path.iterdir())  # the files of a call end with it


@pytest.mark.skipif(sys.platform != "linux", reason="reads memory in Linux's way")
@pytest.mark.parametrize("backend", ["openvino", "onnxruntime-cpu"])
def test_memory_is_given_back_unless_it_shall_be_kept(demo_bundle: Bundle, backend: str) -> None:
    script = f"""
import numpy as np
from vaedeploy.runtime import VAE
vae = VAE({str(demo_bundle.path)!r}, {backend!r}, keep_memory=KEEP)
vae.decode(np.zeros((1, 16, 4, 4), np.float32))
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096
before = resident()
vae.decode(np.zeros((1, 16, 96, 96), np.float32))
print(resident() - before)
"""
    given_back, kept = (int(run_python(script.replace("KEEP", word)).stdout) for word in ("False", "True"))
    assert given_back < kept / 4


def test_importing_it_sends_nothing_and_writes_nothing(bundle: Bundle, tmp_path: Path) -> None:
    script = f"""
import sys
import numpy as np
from vaedeploy.runtime import VAE
VAE({str(bundle.path)!r}, "openvino").decode(np.zeros((1, {CHANNELS}, 2, 2), np.float32))
print(*sorted(name for name in sys.modules if name.startswith("openvino_telemetry")))
"""
    environment = {name: value for name, value in os.environ.items() if name != "CI"} | {"HOME": str(tmp_path)}
    told = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert (told.stdout.strip(), list(tmp_path.iterdir())) == ("", [])


# Which of the backends answers


def test_a_bundle_without_openvino(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    openvino.load_library.cache_clear()
    openvino._core.cache_clear()
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendError) as refused:
        VAE(bundle.path, "openvino")
    openvino._core.cache_clear()
    assert str(refused.value) == (
        "OpenVINO cannot be imported (import of openvino halted; None in sys.modules). Install it: "
        + install_command("openvino")
    )


@pytest.mark.parametrize(
    ("version", "told"), [("2024.6.0-17404-4c0f47d2335-releases/2024/6", "2024.6.0"), (None, "without a version")]
)
def test_one_that_is_too_old(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, version: str | None, told: str) -> None:
    monkeypatch.setattr(openvino.load_library(), "__version__", version)
    openvino.load_library.cache_clear()
    openvino._core.cache_clear()
    with pytest.raises(BackendError) as refused:
        VAE(bundle.path, "openvino")
    assert str(refused.value) == (
        f"OpenVINO {told} is too old: version 2025.0 or newer is needed. Install it: {install_command('openvino')}"
    )


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"backend": "openvino", "device": "GPU.7"}, BackendError, "OpenVINO has no device 'GPU.7' here; it has: CPU"),
        (
            {"device": "NPU"},
            InputError,
            "device is 'NPU', as OpenVINO names one; give backend='openvino' too, or a number",
        ),
        (
            {"backend": "openvino", "precision": "fp16"},
            BackendError,
            "OpenVINO computes in fp32 and bf16 here, and not in fp16",
        ),
        (
            {"backend": "onnxruntime-cpu", "precision": "bf16"},
            BackendError,
            "onnxruntime-cpu computes bundle {path} in fp32, and not in bf16",
        ),
        ({"precision": "int8"}, InputError, "precision is 'int8'; it must be one of fp32, fp16, bf16, or None"),
    ],
)
def test_what_cannot_be_is_refused(bundle: Bundle, options: dict[str, str], error: type[Exception], words: str) -> None:
    with pytest.raises(error) as refused:
        VAE(bundle.path, **options)
    assert str(refused.value).startswith(words.format(path=bundle.path))


def test_bfloat16_without_instructions_for_it_is_told_of(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(openvino, "has_bfloat16", lambda: False)
    monkeypatch.setattr(openvino, "takes_bfloat16", lambda device: True)
    VAE(bundle.path, "openvino", precision="bf16").close()
    assert caplog.messages == [
        "this CPU has no instructions for bfloat16, so openvino is slower in bf16 than in fp32 here"
    ]


@pytest.mark.skipif(openvino.takes_bfloat16(), reason="OpenVINO computes in bfloat16 on this CPU")
def test_bfloat16_is_refused_where_openvino_computes_in_float32_in_its_place(bundle: Bundle) -> None:
    """What is asked of OpenVINO is not what it does, so a verdict of it would be one of float32."""
    with pytest.raises(BackendError) as refused:
        VAE(bundle.path, "openvino", precision="bf16")
    assert str(refused.value) == (
        f"OpenVINO does not compute in bfloat16 on {cpu_name()}, and would compute in float32 in its place. "
        "Ask for fp32, or for no precision"
    )
    model = (
        openvino.load_library()
        .Core()
        .compile_model(bundle.graph("decoder", "openvino"), "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})
    )
    assert model.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"


def test_its_pace_needs_onnx_runtime(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    (candidate,) = find_candidates(bundle, Settings(backend="openvino"))
    pace = measure_pace(bundle, candidate)
    assert pace is not None
    assert pace > 0
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert measure_pace(bundle, candidate) is None


Noted = Callable[..., Bundle]


@pytest.fixture
def noted(tmp_path: Path) -> Noted:
    def make(precision: str, report: bytes, processor: str | None = None) -> Bundle:
        bundle = tiny_bundle(tmp_path / "tiny", force=True)
        name = report_name("openvino", precision, processor or cpu_name())  # type: ignore[arg-type]
        return bundle.update(files={name: report})

    return make


@pytest.mark.parametrize(
    ("report", "first"),
    [
        (b'{"passed": true, "pace": 0.7}', "openvino"),
        (b'{"passed": true, "pace": 1.02}', "onnxruntime-cpu"),
        (b'{"passed": true}', "onnxruntime-cpu"),
        (b'{"passed": false, "pace": 0.7}', "onnxruntime-cpu"),
    ],
)
def test_it_answers_first_where_it_was_verified_and_faster(noted: Noted, report: bytes, first: str) -> None:
    with VAE(noted("fp32", report).path) as vae:
        assert vae.backend == first


def test_a_verdict_holds_for_its_precision_and_its_kind_of_cpu(noted: Noted) -> None:
    passed = b'{"passed": true, "pace": 0.5}'
    for bundle in (noted("bf16", passed), noted("fp32", passed, "another CPU")):
        with VAE(bundle.path) as vae:
            assert vae.backend == "onnxruntime-cpu"


def test_what_was_not_verified_here_is_told_once(noted: Noted, caplog: pytest.LogCaptureFixture) -> None:
    bundle = noted("fp32", b'{"passed": true}', "another CPU")
    with VAE(bundle.path, "openvino") as vae:
        vae.decode(vae.encode(photo(8, 8)))
    assert caplog.messages == [
        f"openvino in fp32 was never compared with PyTorch on {cpu_name()}; its images may be wrong. Run: vaedeploy "
        f"verify {bundle.path} --backend openvino --precision fp32"
    ]
    caplog.clear()
    with VAE(noted("fp32", b'{"passed": true}').path, "openvino") as vae:
        vae.decode(vae.encode(photo(8, 8)))
    assert caplog.messages == []


def test_a_failed_verdict_is_told(noted: Noted, caplog: pytest.LogCaptureFixture) -> None:
    bundle = noted("fp32", b'{"passed": false}')
    with VAE(bundle.path, "openvino") as vae:
        vae.decode(vae.encode(photo(8, 8)))
    assert caplog.messages == [
        f"openvino in fp32 failed its verification on {cpu_name()}; its images may be wrong. Run: vaedeploy verify "
        f"{bundle.path} --backend openvino --precision fp32"
    ]


def test_flags_of_the_cpu(tmp_path: Path) -> None:
    place = tmp_path / "cpuinfo"
    place.write_text("processor\t: 0\nflags\t\t: fpu amx_bf16\n\nprocessor\t: 1\nflags\t\t: fpu avx512_bf16\n")
    assert cpu_flags(place) == {"fpu", "amx_bf16"}
    place.write_text("processor\t: 0\nFeatures\t: fp bf16\n")
    assert cpu_flags(place) == {"fp", "bf16"}
    assert cpu_flags(tmp_path / "none") == frozenset()

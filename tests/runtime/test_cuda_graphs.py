"""CUDA graphs of ONNX Runtime on the CPU's provider, with the host's memory for a GPU's. On a GPU: tests/gpu."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from host_gpu import HostDevice
from numpy.typing import NDArray
from tiny_bundle import tiny_bundle
from tiny_inputs import CHANNELS, noise

from vaedeploy.bundle import Bundle
from vaedeploy.errors import BackendError
from vaedeploy.runtime import VAE, cuda_graphs, onnxruntime_cpu, onnxruntime_cuda
from vaedeploy.runtime.device import OnDevice
from vaedeploy.values.interface import Tensor

ASKED = {"enable_cuda_graph": "1"}

pytestmark = pytest.mark.filterwarnings("ignore:Duplicate provider:UserWarning")


class Recorded:
    """A session that keeps ONNX Runtime's rule: a graph that a thread has recorded runs on the arrays of that run,
    whatever it is bound to later.
    """

    def __init__(self, session: Any) -> None:
        self._session = session
        self.recorded: dict[tuple[int, str], Any] = {}
        self.runs: list[str] = []
        self.refuses = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, outputs: Any, inputs: Any, options: Any) -> Any:
        assert self._number(options) == "-1"
        return self._session.run(outputs, inputs, options)

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        number = self._number(options)
        if number != "-1":
            if self.refuses:
                raise RuntimeError("CUDA failure 900: operation not permitted when stream is capturing")
            binding = self.recorded.setdefault((threading.get_ident(), number), binding)
        self._session.run_with_iobinding(binding, options)

    def _number(self, options: Any) -> str:
        number: str = options.get_run_config_entry("gpu_graph_id")
        self.runs.append(number)
        return number


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> HostDevice:
    made = HostDevice()
    monkeypatch.setattr(onnxruntime_cuda, "PROVIDER", onnxruntime_cpu.PROVIDER)
    monkeypatch.setattr(onnxruntime_cuda, "MEMORY", "cpu")
    monkeypatch.setattr(onnxruntime_cuda, "CudaDevice", lambda number: made)
    return made


@pytest.fixture
def opened(tmp_path: Path, device: HostDevice, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """Opens a decoder with CUDA graphs, whose sessions are ``Recorded`` and in its list ``made``."""
    open_again = onnxruntime_cuda.Session._open_again
    graph = tiny_bundle(tmp_path / "tiny").graph("decoder")
    made: list[Recorded] = []

    def recorded(self: Any) -> Recorded:
        made.append(Recorded(open_again(self)))
        return made[-1]

    monkeypatch.setattr(onnxruntime_cuda.Session, "_open_again", recorded)

    def open_session() -> Any:
        session = onnxruntime_cuda.Session(graph, options=ASKED)
        session.made, session.plain = made, onnxruntime_cpu.Session(graph)
        return session

    return open_session


def latent(seed: int, batch: int = 1, rows: int = 4) -> NDArray[np.float32]:
    return noise(batch, CHANNELS, rows, 4) + np.float32(seed)


def check(session: Any, given: NDArray[np.float32], outputs: tuple[str, ...] = ("image", "finite")) -> None:
    found = session.run(outputs, {"latent": given})
    for one, expected in zip(found, session.plain.run(outputs, {"latent": given}), strict=True):
        np.testing.assert_array_equal(one, expected)


def test_each_call_gives_the_results_of_its_own_input(opened: Callable[[], Any]) -> None:
    session = opened()
    for seed in range(4):
        check(session, latent(seed))
    (recorded,) = session.made
    assert recorded.runs == ["-1", "1", "1", "1"], "the first call shows the shapes, and the second is recorded"


def test_sizes_and_outputs_have_graphs_of_their_own(opened: Callable[[], Any]) -> None:
    session = opened()
    for seed in range(3):
        for rows in (2, 3):
            for outputs in (("image",), ("image_u8", "finite")):
                check(session, latent(seed, rows=rows), outputs)
    assert [one.runs for one in session.made] == [["-1", "-1", "1", "2", "1", "2"]] * 2, "a session for each size"


def test_arrays_of_the_device_and_of_the_caller(opened: Callable[[], Any], device: HostDevice) -> None:
    session = opened()
    for seed in range(3):
        given, place = latent(seed), np.zeros((1, 3, 16, 16), np.float32)
        (expected,) = session.plain.run(["image"], {"latent": given})
        there = device.array(Tensor(expected.shape, expected.dtype))
        (found,) = session.run(["image"], {"latent": device.put(given)}, {"image": there})
        assert found is there
        np.testing.assert_array_equal(there.on_host(), expected)
        place = np.zeros_like(expected)
        assert session.run(["image"], {"latent": given}, {"image": place})[0] is place
        np.testing.assert_array_equal(place, expected)


def test_a_result_is_not_written_by_the_next_call(opened: Callable[[], Any]) -> None:
    session = opened()
    results = [session.run(["image"], {"latent": latent(seed)})[0] for seed in range(3)]
    for seed, found in enumerate(results):
        np.testing.assert_array_equal(found, session.plain.run(["image"], {"latent": latent(seed)})[0])


def test_a_thread_that_makes_one_call_records_nothing(opened: Callable[[], Any]) -> None:
    session = opened()
    check(session, latent(0))
    thread = threading.Thread(target=lambda: session.run(["image", "finite"], {"latent": latent(1)}))
    thread.start()
    thread.join()
    check(session, latent(2))
    assert session.made[0].runs == ["-1", "-1", "1"]


def test_calls_of_all_sessions_take_turns(opened: Callable[[], Any]) -> None:
    """While one records, CUDA would refuse what another asks of it."""
    sessions, running, most = [opened(), opened()], 0, 0

    def watched(run: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            nonlocal running, most
            running += 1
            most = max(most, running)
            time.sleep(0.002)
            found = run(*arguments)
            running -= 1
            return found

        return call

    for recorded in sessions[0].made:
        recorded.run, recorded.run_with_iobinding = watched(recorded.run), watched(recorded.run_with_iobinding)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda seed: check(sessions[seed % 2], latent(seed)), range(24)))
    assert most == 1


def test_no_more_is_recorded_than_a_session_keeps(opened: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "MOST_RECORDED", 2)
    session = opened()
    for seed in range(3):
        for outputs in (("image",), ("image_u8",), ("finite",)):
            check(session, latent(seed), outputs)
    assert session.made[0].runs == ["-1", "-1", "-1", "1", "2", "-1", "1", "2", "-1"]


def test_what_cannot_be_recorded_runs_as_before(opened: Callable[[], Any], caplog: pytest.LogCaptureFixture) -> None:
    session = opened()
    session.made[0].refuses = True
    for seed in range(3):
        check(session, latent(seed))
    assert session.made[0].runs == ["-1", "1", "-1", "-1"], "it is tried once"
    assert "a run is not recorded as a CUDA graph: ONNX Runtime failed" in caplog.text


def test_without_memory_for_the_arrays_nothing_is_recorded(
    opened: Callable[[], Any], device: HostDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(tensor: Tensor) -> OnDevice:
        raise BackendError(f"{tensor.size:,} bytes for a result cannot be had")

    session = opened()
    check(session, latent(0))
    with monkeypatch.context() as full:
        full.setattr(device, "array", no_room)
        check(session, latent(1))
    check(session, latent(2))
    assert session.made[0].runs == ["-1", "-1", "1"], "it is recorded when there is room"


@pytest.mark.parametrize(("value", "asked"), [("1", True), ("True", True), ("0", False), (None, False)])
def test_the_option(value: str | None, asked: bool) -> None:
    options = {"use_tf32": "1", **({} if value is None else {"enable_cuda_graph": value})}
    assert cuda_graphs.are_asked(options) == asked
    assert cuda_graphs.without(options) == {"use_tf32": "1"}


def test_a_bundle_without_the_form_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime_cuda, "problem", lambda device: None)
    path = tiny_bundle(tmp_path / "tiny").path
    assert "onnxruntime-cuda" not in Bundle.open(path).manifest.graphs["decoder"]
    wanted = r"CUDA graphs \(enable_cuda_graph\) are for the form onnxruntime-cuda, which .*tiny does not have"
    with pytest.raises(BackendError, match=wanted):
        VAE(path, "onnxruntime-cuda", provider_options=ASKED)

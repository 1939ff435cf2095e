"""The calls of TensorRT: with TensorRT-RTX itself as far as it goes without a GPU, and with what records the rest."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from engine_files import write_profile
from host_gpu import HostDevice
from places import ROOT
from tiny_bundle import tiny_bundle

from vaedeploy.errors import BackendError
from vaedeploy.pipeline.build import build_engines
from vaedeploy.runtime import tensorrt
from vaedeploy.system.gpu import Gpu, cuda_devices
from vaedeploy.system.installs import install_command
from vaedeploy.system.messages import LastMessages

LOAD = """
import sys
from pathlib import Path
from host_gpu import HostDevice
from vaedeploy.errors import BackendError
from vaedeploy.runtime import tensorrt
try:
    engine = Path(sys.argv[1])
    tensorrt.load_plan(engine, engine.read_bytes(), "tensorrt-rtx", "0" * 64, HostDevice(), True)
except BackendError as error:
    print(error)
"""


def loaded(engine: Path) -> str:
    """What loading an engine says, in a process whose driver is the machine's own."""
    command = [sys.executable, "-c", LOAD, str(engine)]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT / "tests" / "support").stdout


@pytest.mark.skipif(cuda_devices() > 0, reason="there is a GPU here, on which it loads")
def test_what_tensorrt_says_when_it_cannot_load_an_engine(tmp_path: Path) -> None:
    write_profile(tmp_path, precision='"fp32"', shapes="{ small = { height = 8, width = 8 } }")
    bundle = build_engines(tiny_bundle(tmp_path / "tiny"), ["mine"], folder=tmp_path)
    name = "engines/mine/decoder.tensorrt-rtx.engine"
    first, *messages = loaded(bundle.path / name).splitlines()
    assert first == f"tensorrt-rtx cannot load {bundle.path / name}. TensorRT's last messages:"
    assert any("CUDA driver version is insufficient" in message for message in messages)


def test_no_engine_at_all(tmp_path: Path) -> None:
    (tmp_path / "engine").write_bytes(b"this is no engine")
    first, *messages = loaded(tmp_path / "engine").splitlines()
    assert first == f"tensorrt-rtx cannot load {tmp_path / 'engine'}. TensorRT's last messages:"
    assert len(messages) > 0


def test_a_backend_that_is_not_there() -> None:
    with pytest.raises(BackendError) as refused:
        tensorrt.load_library("tensorrt")
    assert str(refused.value).startswith("tensorrt cannot be imported (")
    assert str(refused.value).endswith(f". Install it: {install_command('tensorrt')}")
    assert tensorrt.problem("tensorrt") == str(refused.value)


# ------------------------------------------------------------------------------------------------ what it is asked for


@dataclass
class Recorder:
    """Stands for TensorRT's objects: takes every call, remembers it, and answers True but for what it ``refuses``."""

    calls: list[tuple[Any, ...]] = field(default_factory=list)
    refuses: str = ""
    scratch: int = 1000
    compiled: bytes = b"kernels"
    deserialized: list[bytes] = field(default_factory=list)
    takes_kernels: bool = True

    def create_runtime_config(self) -> Recorder:
        return self

    def create_runtime_cache(self) -> Any:
        def deserialize(kernels: bytes) -> bool:
            self.deserialized.append(kernels)
            return self.takes_kernels

        return SimpleNamespace(deserialize=deserialize, serialize=lambda: self.compiled)

    def create_execution_context(self, config: object) -> Recorder | None:
        return None if self.refuses == "create_execution_context" else self

    def update_device_memory_size_for_shapes(self) -> int:
        return self.scratch

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> bool:
            self.calls.append((name, *arguments))
            return name != self.refuses

        return call


MODULE: Any = SimpleNamespace(
    DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER="eager"),
    ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user managed"),
    CudaGraphStrategy=SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole graph"),
)
LOG: Any = SimpleNamespace(messages=LastMessages("TensorRT"))
LOG.messages.add("it says so")


class Stream:
    handle = 7
    waited = 0

    def synchronize(self) -> None:
        self.waited += 1


def cache(name: str) -> tensorrt.RuntimeCache:
    return tensorrt.RuntimeCache(name, HostDevice())  # type: ignore[arg-type]


def plan(engine: Recorder, cache: tensorrt.RuntimeCache | None = None, cuda_graphs: bool = True) -> tensorrt.EnginePlan:
    device: Any = HostDevice()
    return tensorrt.EnginePlan(MODULE, device, LOG, None, engine, cuda_graphs, cache)


def test_a_context_is_set_up_and_run() -> None:
    engine, stream = Recorder(), Stream()
    context = plan(engine).context()
    assert engine.calls == [("set_execution_context_allocation_strategy", "user managed")]
    engine.calls.clear()
    assert context.set_shape(1, "latent", (1, 4, 64, 64), stream) == 1000  # type: ignore[arg-type]
    context.set_scratch(SimpleNamespace(address=512, size=2000))  # type: ignore[arg-type]
    context.bind("latent", 1024)
    context.enqueue(stream)  # type: ignore[arg-type]
    assert engine.calls == [
        ("set_optimization_profile_async", 1, 7),
        ("set_input_shape", "latent", (1, 4, 64, 64)),
        ("set_device_memory", 512, 2000),
        ("set_tensor_address", "latent", 1024),
        ("execute_async_v3", 7),
    ]
    assert stream.waited == 1  # for the profile, before anything else uses the context
    engine.calls.clear()
    context.set_shape(1, "latent", (1, 4, 32, 32), stream)  # type: ignore[arg-type]
    assert engine.calls == [("set_input_shape", "latent", (1, 4, 32, 32))]


@pytest.mark.parametrize(
    ("refused", "what"),
    [
        ("set_optimization_profile_async", "profile 0"),
        ("set_input_shape", "latent of shape (1, 4, 8, 8)"),
        ("set_tensor_address", "the address of latent"),
        ("execute_async_v3", "to run on latent of shape (1, 4, 8, 8)"),
    ],
)
def test_what_tensorrt_refuses(refused: str, what: str) -> None:
    engine, stream = Recorder(refuses=refused), Stream()
    context = plan(engine).context()

    def work() -> None:
        context.set_shape(0, "latent", (1, 4, 8, 8), stream)  # type: ignore[arg-type]
        context.bind("latent", 256)
        context.enqueue(stream)  # type: ignore[arg-type]

    with pytest.raises(BackendError) as error:
        work()
    assert str(error.value) == f"TensorRT refuses {what}. TensorRT's last messages:\n  it says so"


def test_a_profile_that_was_refused_is_set_again() -> None:
    engine, stream = Recorder(refuses="set_optimization_profile_async"), Stream()
    context = plan(engine).context()
    with pytest.raises(BackendError):
        context.set_shape(0, "latent", (1, 4, 8, 8), stream)  # type: ignore[arg-type]
    engine.refuses = ""
    context.set_shape(0, "latent", (1, 4, 8, 8), stream)  # type: ignore[arg-type]
    assert [call[0] for call in engine.calls].count("set_optimization_profile_async") == 2


def test_no_context() -> None:
    with pytest.raises(BackendError, match=r"^TensorRT made no execution context. TensorRT's last messages:"):
        plan(Recorder(refuses="create_execution_context")).context()


def test_there_is_no_room_to_run() -> None:
    log = SimpleNamespace(messages=LastMessages("TensorRT"))
    log.messages.add("CUDA: Out of memory")
    device: Any = HostDevice()
    made = tensorrt.EnginePlan(MODULE, device, log, None, Recorder(), True, None)
    assert str(made.refused("to run")) == (
        "TensorRT refuses to run. TensorRT's last messages:\n  CUDA: Out of memory. Give a smaller batch or size, or "
        "free memory there"
    )


def test_kernels_are_those_that_were_verified() -> None:
    """TensorRT-RTX answers by a fallback until those of a size are compiled, unless it is told to wait for them."""
    rtx = Recorder()
    plan(rtx, cache("a"))
    assert rtx.dynamic_shapes_kernel_specialization_strategy == "eager"


def test_who_records_cuda_graphs() -> None:
    """TensorRT-RTX itself, or whoever runs TensorRT; nobody where the profile says so."""
    rtx, off = Recorder(), Recorder()
    assert plan(Recorder()).graphs == "recorded"
    assert plan(Recorder(), cuda_graphs=False).graphs == "none"
    assert plan(rtx, cache("a")).graphs == "its own"
    assert rtx.cuda_graph_strategy == "whole graph"
    assert plan(off, cache("a"), cuda_graphs=False).graphs == "none"
    assert callable(off.cuda_graph_strategy)  # was not set


# --------------------------------------------------------------------------------------------------------- the cache


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("vaedeploy.runtime.tensorrt.cache_folder", lambda name: tmp_path)
    return tmp_path


def test_what_was_compiled_is_there_next_time(folder: Path) -> None:
    """It is kept once a shape has run, since a service that is killed has no other time for it."""
    first = plan(Recorder(), cache("1.7-abc.cache"))
    assert list(folder.iterdir()) == []
    first.settled()
    assert (folder / "1.7-abc.cache").read_bytes() == b"kernels"
    engine = Recorder()
    plan(engine, cache("1.7-abc.cache"))
    assert engine.deserialized == [b"kernels"]
    assert engine.calls[-1][0] == "set_runtime_cache"


def test_kernels_of_another_machine(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "a").write_bytes(b"foreign")
    running = plan(Recorder(takes_kernels=False), cache("a"))
    assert caplog.messages == [f"TensorRT-RTX does not take the kernels in {folder / 'a'}, and compiles them again"]
    running.settled()
    assert (folder / "a").read_bytes() == b"kernels"


def test_nothing_that_was_compiled_replaces_nothing(folder: Path) -> None:
    (folder / "a").write_bytes(b"kernels")
    running = plan(Recorder(compiled=b""), cache("a"))
    running.settled()
    assert (folder / "a").read_bytes() == b"kernels"


def test_a_cache_is_of_one_engine_version_gpu_and_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {tensorrt._cache_name(version, sha256, 0) for version in ("1.7", "1.8") for sha256 in ("0" * 64, "1" * 64)}
    for gpu in ("NVIDIA L4", "NVIDIA GeForce RTX 4090"):
        monkeypatch.setattr("vaedeploy.runtime.tensorrt.find_gpu", lambda number, gpu=gpu: Gpu(gpu, "8.9", 24.0))
        names.add(tensorrt._cache_name("1.7", "0" * 64, 0))
    monkeypatch.setattr("vaedeploy.runtime.tensorrt.driver_version", lambda: "14.0")
    names.add(tensorrt._cache_name("1.7", "0" * 64, 0))
    assert len(names) == 7


def test_a_cache_that_did_not_change_is_not_written(folder: Path) -> None:
    (folder / "same").write_bytes(b"kernels")
    before = (folder / "same").stat().st_mtime_ns
    plan(Recorder(), cache("same")).settled()
    assert (folder / "same").stat().st_mtime_ns == before


def test_a_cache_without_a_place_is_told_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def nowhere(name: str) -> Path:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("vaedeploy.runtime.tensorrt.cache_folder", nowhere)
    plan(Recorder(), cache("a")).settled()
    assert [message.split(":")[0] for message in caplog.messages] == [
        "TensorRT-RTX's cache of compiled kernels cannot be read",
        "TensorRT-RTX's cache of compiled kernels cannot be kept",
    ]

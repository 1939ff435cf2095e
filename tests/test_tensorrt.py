"""The calls of TensorRT: with TensorRT-RTX itself as far as it goes without a GPU, and with what records the rest."""

from __future__ import annotations

import gc
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_profile import written
from tiny_bundle import tiny_bundle

from vaedeploy.engines import build_engines
from vaedeploy.errors import BackendError
from vaedeploy.gpu import cuda_devices
from vaedeploy.runtime import tensorrt


@pytest.mark.skipif(cuda_devices() > 0, reason="there is a GPU here, on which it loads")
def test_what_tensorrt_says_when_it_cannot_load_an_engine(tmp_path: Path) -> None:
    written(tmp_path, precision='"fp32"', shapes="{ small = { height = 8, width = 8 } }")
    bundle = build_engines(tiny_bundle(tmp_path / "tiny"), ["mine"], folder=tmp_path)
    name = "engines/mine/decoder.tensorrt-rtx.engine"
    with pytest.raises(BackendError) as refused:
        tensorrt.load_plan(bundle.path / name, "tensorrt-rtx", bundle.manifest.files[name].sha256, True)
    first, told, *messages = str(refused.value).splitlines()
    assert f"{first}\n{told}".startswith(f"tensorrt-rtx cannot load {bundle.path / name}. TensorRT's last messages:\n")
    assert any("CUDA driver version is insufficient" in message for message in [told, *messages])


def test_no_engine_at_all(tmp_path: Path) -> None:
    (tmp_path / "engine").write_bytes(b"this is no engine")
    with pytest.raises(BackendError, match=r"^tensorrt-rtx cannot load .*engine. TensorRT's last messages:"):
        tensorrt.load_plan(tmp_path / "engine", "tensorrt-rtx", "0" * 64, True)


def test_a_backend_that_is_not_there() -> None:
    with pytest.raises(BackendError) as refused:
        tensorrt.load_library("tensorrt")
    assert str(refused.value).startswith("tensorrt cannot be imported (")
    assert str(refused.value).endswith('. Install it: pip install "vaedeploy[tensorrt]"')
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

    def create_runtime_config(self) -> Recorder:
        return self

    def create_runtime_cache(self) -> Any:
        return SimpleNamespace(deserialize=self.deserialized.append, serialize=lambda: self.compiled)

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
    ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user managed"),
    CudaGraphStrategy=SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole graph"),
)
LOG: Any = SimpleNamespace(tail=lambda: ". TensorRT's last messages:\n  it says so")


class Stream:
    handle = 7
    waited = 0

    def synchronize(self) -> None:
        self.waited += 1


def plan(engine: Recorder, cache: tensorrt.RuntimeCache | None = None, cuda_graphs: bool = True) -> tensorrt.EnginePlan:
    return tensorrt.EnginePlan(MODULE, LOG, None, engine, cuda_graphs, cache)


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
        ("execute_async_v3", "to run"),
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


def test_who_records_cuda_graphs() -> None:
    """TensorRT-RTX itself, or whoever runs TensorRT; nobody where the profile says so."""
    rtx, off = Recorder(), Recorder()
    assert plan(Recorder()).records
    assert not plan(Recorder(), cuda_graphs=False).records
    assert not plan(rtx, tensorrt.RuntimeCache("a")).records
    assert rtx.cuda_graph_strategy == "whole graph"
    assert not plan(off, tensorrt.RuntimeCache("a"), cuda_graphs=False).records
    assert callable(off.cuda_graph_strategy)  # was not set


# --------------------------------------------------------------------------------------------------------- the cache


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("vaedeploy.runtime.tensorrt.cache_folder", lambda name: tmp_path)
    return tmp_path


def test_what_was_compiled_is_there_next_time(folder: Path) -> None:
    first = plan(Recorder(), tensorrt.RuntimeCache("1.7-abc.cache"))
    assert list(folder.iterdir()) == []
    del first
    gc.collect()
    assert (folder / "1.7-abc.cache").read_bytes() == b"kernels"
    engine = Recorder()
    plan(engine, tensorrt.RuntimeCache("1.7-abc.cache"))
    assert engine.deserialized == [b"kernels"]
    assert engine.calls[-1][0] == "set_runtime_cache"


def test_a_cache_that_did_not_change_is_not_written(folder: Path) -> None:
    (folder / "same").write_bytes(b"kernels")
    before = (folder / "same").stat().st_mtime_ns
    kept = plan(Recorder(), tensorrt.RuntimeCache("same"))
    del kept
    gc.collect()
    assert (folder / "same").stat().st_mtime_ns == before


def test_a_cache_without_a_place_is_told_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def nowhere(name: str) -> Path:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("vaedeploy.runtime.tensorrt.cache_folder", nowhere)
    kept = plan(Recorder(), tensorrt.RuntimeCache("a"))
    del kept
    gc.collect()
    assert [message.split(":")[0] for message in caplog.messages] == [
        "TensorRT-RTX's cache of compiled kernels cannot be read",
        "TensorRT-RTX's cache of compiled kernels cannot be kept",
    ]

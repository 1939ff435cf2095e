"""The process that builds an engine: what it is told, what it tells, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from builds import corrupt, in_background, worker_of
from engine_files import DECODER, ENCODER, snapshot, write_profile
from tiny_bundle import tiny_bundle

from vaedeploy.bundle import Bundle, check_bundle
from vaedeploy.engines.build import build_engine
from vaedeploy.engines.protocol import BuildRequest
from vaedeploy.engines.worker import _Monitor
from vaedeploy.errors import BackendError, BuildError
from vaedeploy.pipeline.build import build_engines
from vaedeploy.system.installs import install_command


def test_the_gpu_is_asked_for_before_its_builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the GPU is another, installing TensorRT does not help."""
    monkeypatch.setattr("vaedeploy.engines.plan.find_gpu", lambda: None)
    with pytest.raises(BackendError) as refused:
        build_engines(tiny_bundle(tmp_path / "tiny"), ["h100"])
    assert str(refused.value) == (
        "tensorrt builds on the GPU that it builds for: profile h100 wants compute capability 9.0, and this machine "
        f"has no GPU. Build there ({install_command('tensorrt')}). Without engines, ONNX Runtime computes on that GPU. "
        "Run: vaedeploy export VAE --precision fp16 --form onnxruntime-cuda"
    )


def test_what_cannot_fit_is_refused_before_it_is_built(built: Bundle, tmp_path: Path) -> None:
    before = snapshot(built)
    write_profile(
        tmp_path,
        precision='"fp32"',
        memory_gib="0.5",
        shapes="{ any = { batch = [1, 1, 1000000], height = 1024, width = 2048 } }",
    )
    with pytest.raises(BuildError) as refused:
        build_engines(built, ["mine"], folder=tmp_path)
    assert "the decoder does not fit profile mine: at 1000000x1024x2048 (shapes.any) it needs about " in str(
        refused.value
    )
    assert "and A GPU has 0.5 GiB. Lower the maximum there to batch " in str(refused.value)
    assert str(refused.value).endswith(", or precision fp16")
    assert snapshot(built)[DECODER] == before[DECODER]


def test_a_graph_that_the_parser_refuses(tmp_path: Path, profile_folder: Path) -> None:
    """One failure does not lose the others: the encoder's engine is there."""
    bundle = corrupt(tiny_bundle(tmp_path / "tiny"), "Bernoulli")
    with pytest.raises(BuildError) as refused:
        build_engines(bundle, ["mine"], folder=profile_folder)
    said = str(refused.value)
    assert said.startswith(
        f"1 of 2 engines could not be built; the other 1 is in {bundle.path}:\n"
        "- Building mine decoder with tensorrt-rtx failed: the parser refuses Bernoulli, node node_odd, which is "
        "decoder.up.0.odd in PyTorch. TensorRT's last messages:\n"
    )
    assert "UNSUPPORTED_NODE" in said
    assert set(check_bundle(bundle.path).manifest.engines) == {ENCODER}


# --------------------------------------------------------------------------------- what TensorRT is told, and tells


def test_the_capability_reaches_the_builder(tmp_path: Path) -> None:
    """One graph, one name of the network, two capabilities: not one plan."""
    graph = tiny_bundle(tmp_path / "tiny").graph("decoder")
    plans = []
    for capability in ("7.5", "8.9"):
        request = BuildRequest(
            backend="tensorrt-rtx",
            graph=str(graph),
            out=str(tmp_path / capability),
            compute_capability=capability,
            network_name="the same",
            input="latent",
            profiles=[([1, 2, 2, 2],) * 3],
            options={"tf32": False},
        )
        told: list[float] = []
        plans.append(build_engine(request, "", lambda _, done, total, told=told: told.append(done)).path.read_bytes())
        assert told == sorted(told)
        assert len(told) > 3, "TensorRT's progress is not passed on"
    assert plans[0] != plans[1]


CONFIGURED = """
import os, sys
os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1"
import tensorrt_rtx
from polygraphy.backend.trt import create_network
from vaedeploy.engines.protocol import BuildRequest
from vaedeploy.engines.worker import _config
builder, network = create_network()
for tf32 in (True, False):
    request = BuildRequest(backend="tensorrt-rtx", compute_capability="8.9", options={"tf32": tf32})
    config = _config(request, [], None)(builder, network)
    print(config.get_flag(tensorrt_rtx.BuilderFlag.TF32), config.get_compute_capability(0))
"""


def test_tf32_is_as_the_profile_says() -> None:
    ended = subprocess.run([sys.executable, "-c", CONFIGURED], capture_output=True, text=True, check=True)
    told = [line for line in ended.stdout.splitlines() if "ComputeCapability" in line]
    assert told == ["True ComputeCapability.SM89", "False ComputeCapability.SM89"]


def test_nested_phases_make_one_share() -> None:
    """As TensorRT tells them: phases inside phases, each with its own steps."""
    told: list[float] = []
    monitor = _Monitor(lambda event: told.append(event.share))  # type: ignore[arg-type,union-attr]
    monitor.start("all", None, 4)
    monitor.advance("all", 0)
    monitor.start("inner", "all", 2)
    monitor.advance("inner", 0)
    monitor.advance("inner", 1)
    monitor.start("late", "all", 2)
    monitor.advance("late", 0)
    monitor.advance("all", 3)
    assert told == [0.25, 0.375, 0.5, 1.0]


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc for the process that builds")
def test_a_build_that_is_killed(built: Bundle, profile_folder: Path) -> None:
    """By the system, for its memory: an error with advice, and the engines that were there stay."""
    before = snapshot(built)
    with in_background(built, profile_folder) as process:
        os.kill(worker_of(process), signal.SIGKILL)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "1 of 2 engines could not be built; the other 1 is in" in said
    assert "the build's process was killed by SIGKILL, as the system does when memory runs out: lower the" in said
    assert snapshot(built)[ENCODER] == before[ENCODER]
    check_bundle(built.path)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc for the process that builds")
def test_a_worker_does_not_outlive_who_asked_for_the_engine(built: Bundle, profile_folder: Path) -> None:
    with in_background(built, profile_folder) as process:
        worker = worker_of(process)
        process.kill()
        process.wait()
    deadline = time.monotonic() + 60
    while Path(f"/proc/{worker}/cmdline").exists() and Path(f"/proc/{worker}/cmdline").read_bytes():
        assert time.monotonic() < deadline, "the worker goes on building for nobody"
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_in_a_build(built: Bundle, profile_folder: Path) -> None:
    before = snapshot(built)
    with in_background(built, profile_folder) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in said
    assert snapshot(built) == before
    assert [path.name for path in built.path.parent.iterdir()] == ["tiny"]


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files as a full disk would")
def test_a_limit_on_files(built: Bundle, profile_folder: Path) -> None:
    before = snapshot(built)
    limit = "import resource, signal\nresource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
    with in_background(built, profile_folder, limit + "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n") as process:
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "2 of 2 engines could not be built:" in said
    assert "Building mine encoder with tensorrt-rtx failed: a file there may not become that large (" in said
    assert snapshot(built) == before


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_out_of_memory(built: Bundle, profile_folder: Path) -> None:
    """The limit is on the process that builds: enough for TensorRT to load, too little to build."""
    import resource

    before = snapshot(built)
    with in_background(built, profile_folder) as process:
        resource.prlimit(worker_of(process), resource.RLIMIT_AS, (420_000_000, 420_000_000))
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "mine encoder with tensorrt-rtx failed: TensorRT made no engine; memory ran out: lower the largest" in said
    assert "std::bad_alloc" in said
    assert snapshot(built)[ENCODER] == before[ENCODER]
    check_bundle(built.path)

"""TensorRT's own builder as far as a machine without it can try it."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_files import RTX4090, SIZES, write_profile
from tiny_bundle import tiny_bundle

from vaedeploy.bundle import Bundle, check_bundle
from vaedeploy.engines.build import _death
from vaedeploy.errors import BackendError
from vaedeploy.pipeline.build import build_engines
from vaedeploy.system.gpu import Gpu
from vaedeploy.system.installs import install_command
from vaedeploy.values.kinds import PARTS

STAND_IN = """
from tensorrt_rtx import *
__version__ = "11.4.0"
"""


@pytest.fixture
def tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package ``tensorrt``, which has TensorRT-RTX's builder inside, and a GPU for it."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "tensorrt.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("vaedeploy.engines.plan.find_gpu", lambda: RTX4090)
    return tmp_path


@pytest.mark.skipif(sys.platform != "linux", reason="the cache's place is Linux's")
def test_tensorrt_itself_as_far_as_it_can_be_tried(tensorrt: Path, engine_bundle: Bundle) -> None:
    """Its path through the code: an engine bound to the GPU model, with a timing cache. Its builder is not its own."""
    bundle = Bundle.open(shutil.copytree(engine_bundle.path, tensorrt / "tiny"))
    write_profile(tensorrt, precision='"fp32"', shapes=SIZES)
    made = build_engines(bundle, ["mine"], backend="tensorrt", folder=tensorrt)
    name = "engines/mine/decoder.tensorrt.engine"
    identity = made.manifest.engines[name].identity
    assert (identity.backend, identity.gpu) == ("tensorrt", RTX4090.name)
    assert identity.options == {"tf32": False, "hardware_compatibility": "none"}
    cache = tensorrt / "cache" / "vaedeploy" / "timing" / f"{identity.backend_version}-NVIDIA-GeForce-RTX-4090.cache"
    assert cache.is_file()
    told: list[str] = []
    build_engines(
        made, ["mine"], backend="tensorrt", folder=tensorrt, progress=lambda what, *_: told.append(what)
    )  # it finds the cache there, and the engines
    assert told == [f"engines/mine/{part}.tensorrt.engine is up to date" for part in PARTS]
    assert {info.identity.backend for info in made.manifest.engines.values()} == {"tensorrt", "tensorrt-rtx"}
    check_bundle(made.path)


def test_a_cache_that_cannot_be_made_stops_no_build(
    tensorrt: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tensorrt / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tensorrt / "file"))
    write_profile(tensorrt, precision='"fp32"', shapes="{ small = { height = 8, width = 8 } }")
    build_engines(tiny_bundle(tensorrt / "tiny"), ["mine"], backend="tensorrt", folder=tensorrt)
    assert any("there is no place for TensorRT's timing cache" in message for message in caplog.messages)


def test_tensorrt_builds_on_its_gpu_alone(tensorrt: Path, built: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vaedeploy.engines.plan.find_gpu", lambda: Gpu("NVIDIA T4", "7.5", 15.0))
    with pytest.raises(BackendError) as refused:
        build_engines(built, ["rtx4090"], backend="tensorrt")
    assert str(refused.value).endswith(
        "profile rtx4090 wants compute capability 8.9, and this machine has NVIDIA T4 (7.5). Build there "
        f"({install_command('tensorrt')}), or here with --backend tensorrt-rtx"
    )
    with pytest.raises(BackendError, match=r"wants compute capability 9.0, .* NVIDIA T4 .*pip install .*\)\. Without"):
        build_engines(built, ["h100"])


def test_a_signal_without_a_name() -> None:
    assert _death(-signal.SIGRTMIN - 5) == f"was killed by signal {signal.SIGRTMIN + 5}"
    assert _death(-signal.SIGSEGV) == "was killed by SIGSEGV"

"""Sessions of ONNX Runtime on the CPU: what they load, the cores they use, and too little memory."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import onnx
import pytest
from tiny_bundle import tiny_bundle
from tiny_inputs import CHANNELS, noise, reopened, run_python

from vaedeploy.bundle import Bundle
from vaedeploy.errors import BackendError, BundleError
from vaedeploy.runtime.onnxruntime_cpu import Session, problem
from vaedeploy.system.installs import install_command
from vaedeploy.system.machine import usable_cores


def test_graph_that_breaks_the_contract_is_refused(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "tiny")
    bundle.graph("decoder").write_bytes(bundle.graph("encoder").read_bytes())
    with reopened(bundle) as vae, pytest.raises(BundleError) as caught:
        vae.decode(noise(1, CHANNELS, 2, 2))
    assert str(caught.value) == (
        f"{bundle.path / 'decoder.onnx'} takes ['image'] and gives ['latent_mean', 'latent_std']; the decoder of this "
        "bundle must take ['latent'] and give ['image', 'image_u8', 'finite']. Export it again: "
        f"vaedeploy export sd15 --weights random:0 --out {bundle.path} --force"
    )


def test_one_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.__version__", "1.23.2")
    assert problem() == (
        f"ONNX Runtime 1.23.2 is too old: version 1.24 or newer is needed. Install it: {install_command('cpu')}"
    )


def test_weights_outside_of_the_bundle_are_not_read(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "tiny")
    shutil.move(bundle.file("decoder.onnx.data"), tmp_path / "secret")
    model = onnx.load(bundle.graph("decoder"), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../secret"
    bundle.graph("decoder").write_bytes(model.SerializeToString())
    (bundle.path / "decoder.onnx.data").write_bytes((tmp_path / "secret").read_bytes())
    with reopened(bundle) as vae, pytest.raises(BackendError) as caught:
        vae.decode(noise(1, CHANNELS, 2, 2))
    assert str(caught.value).startswith(f"ONNX Runtime cannot load {bundle.path / 'decoder.onnx'}: ")
    assert "secret" in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="affinity is Linux's")
def test_cores_are_those_that_the_process_may_use() -> None:
    script = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from vaedeploy.system.machine import usable_cores; print(usable_cores())"
    )
    assert run_python(script).stdout == "1\n"
    assert 1 <= usable_cores() <= len(os.sched_getaffinity(0))


def test_threads_are_passed_on(bundle: Bundle) -> None:
    for threads, wanted in ((3, 3), (None, usable_cores())):
        session = Session(bundle.graph("decoder"), threads)
        assert session._session.get_session_options().intra_op_num_threads == wanted


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on memory is set in Linux's way")
def test_too_little_memory_is_told_as_such(bundle: Bundle) -> None:
    script = f"""
import resource
import numpy as np
from vaedeploy.runtime import VAE
vae = VAE({str(bundle.path)!r})
vae.decode(np.zeros((1, 2, 2, 2), np.float32))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 200_000_000,) * 2)
vae.decode(np.zeros((1, 2, 1500, 1500), np.float32))
"""
    done = run_python(script)
    last = done.stderr.splitlines()[-1]
    graph = bundle.graph("decoder")
    assert last.startswith(
        f"vaedeploy.errors.BackendError: ONNX Runtime failed in {graph} on latent (1, 2, 1500, 1500): "
    )
    assert last.endswith(". There is not enough memory: give a smaller batch or size")

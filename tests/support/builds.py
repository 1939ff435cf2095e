"""Builds in a process of their own."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
from bundle_folders import edit
from onnx import helper

from vaedeploy.bundle import Bundle

PROGRAM = """
import sys
from vaedeploy.pipeline.build import build_engines
bundle, folder = sys.argv[1:]
build_engines(bundle, ["mine"], folder=folder, force=True, progress=lambda *step: print(*step, flush=True))
"""


@contextmanager
def in_background(bundle: Bundle, profile_folder: Path, before: str = "") -> Iterator[subprocess.Popen[str]]:
    """A process that builds, and that does not outlive the test."""
    command = [sys.executable, "-c", before + PROGRAM, str(bundle.path), str(profile_folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def worker_of(process: subprocess.Popen[str]) -> int:
    """The process that builds for ``process``, as soon as it is there."""
    assert process.stdout is not None
    process.stdout.readline()  # "Building mine encoder ..."
    while not (children := Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()):
        time.sleep(0.001)
    return int(children[0])


def corrupt(bundle: Bundle, operator: str) -> Bundle:
    """Put an operator that TensorRT does not have into the decoder, where PyTorch's exporter says it comes from."""
    path = bundle.graph("decoder")
    model = onnx.load(path, load_external_data=False)
    first = model.graph.node[0]
    first.output[0] = "before"
    foreign = helper.make_node(operator, ["before"], ["image"], name="node_odd")
    scopes = foreign.metadata_props.add()
    scopes.key, scopes.value = "pkg.torch.onnx.name_scopes", "['', 'decoder', 'decoder.up.0.odd', 'odd']"
    model.graph.node.insert(1, foreign)
    onnx.save(model, path)
    data = path.read_bytes()
    info = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    edit(bundle, lambda told: told.update(contents={}, files={**told["files"], "decoder.onnx": info}))
    return Bundle.open(bundle.path)

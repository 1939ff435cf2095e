"""What the command line tells of this machine and of the presets."""

from __future__ import annotations

import json
import re
from importlib.metadata import version

import msgspec
import numpy as np

from vaedeploy.pipeline import doctor
from vaedeploy.source import presets
from vaedeploy.system.installs import install_command
from vaedeploy.version import __version__

# ---------------------------------------------------------------------------------------------- presets and doctor


def test_presets_are_listed(vaedeploy):
    ended = vaedeploy("presets")
    assert (ended.code, ended.err) == (0, "")
    names = [line.split()[0] for line in ended.out.splitlines() if not line.startswith(" ")]
    assert names == list(presets())


def test_presets_as_json(vaedeploy):
    listed = json.loads(vaedeploy("presets", "--json").out)
    assert listed == json.loads(msgspec.json.encode(list(presets().values())))


def test_doctor_names_what_is_installed_and_who_answers(vaedeploy):
    ended = vaedeploy("doctor")
    rows = dict(re.split(r"  +", line, maxsplit=1) for line in ended.out.splitlines())
    assert ended.code == 0
    assert rows["vaedeploy"] == __version__
    assert f"numpy {np.__version__}" in rows["installed"].split(", ")
    assert "onnxruntime-gpu" in rows["not installed"].split(", ")
    assert rows["backend onnxruntime-cpu"] == "available"
    assert rows["extra [export]"] == "complete (for export, verify, compare)"
    assert list(rows).index("GPU") < list(rows).index("backend tensorrt") < list(rows).index("installed")
    # Where onnxruntime is installed, as here, the other package takes its place.
    assert f"Run: pip uninstall onnxruntime, then {install_command('cuda')} " in rows["extra [cuda]"]


def test_doctor_as_json(vaedeploy):
    told = json.loads(vaedeploy("doctor", "--json").out)
    assert told["packages"]["numpy"] == np.__version__
    problems = {backend["name"]: backend["problem"] for backend in told["backends"]}
    assert list(problems) == ["tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "onnxruntime-cpu", "openvino"]
    assert problems["onnxruntime-cpu"] is None
    assert {extra["name"]: extra["install"] for extra in told["extras"]}["export"] == install_command("export")


def test_doctor_warns_of_two_onnx_runtimes(vaedeploy, tmp_path, monkeypatch):
    info = tmp_path / "onnxruntime_gpu-1.20.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 1.20.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    ended = vaedeploy("doctor", "--json")
    assert "Warning: onnxruntime and onnxruntime-gpu are both installed." in ended.err
    assert f"the one in use is onnxruntime {version('onnxruntime')}. To choose, run: pip uninstall" in ended.err
    assert json.loads(ended.out)["warnings"] == list(doctor.diagnose().warnings)

"""What a report says of its own making, and that readers take one without it."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import onnxruntime
import pytest
from cuda_driver import COMPILER
from places import ROOT
from tiny_bundle import tiny_bundle

from vaedeploy.bundle import Bundle
from vaedeploy.system.machine import cpu_name
from vaedeploy.verify.limits import LIMITS, Limit
from vaedeploy.verify.record import record
from vaedeploy.verify.report import Case, Report
from vaedeploy.version import __version__

SUPPORT = ROOT / "tests" / "support"

CASE = Case("decoder", "odd", "image", "onnxruntime", 3, 72, 88, 1e-6, 1e-7, 2e-6, precision="fp16", seconds=0.5)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("tiny") / "tiny")


def test_a_report_says_of_what_by_what_where_and_when_it_is(bundle: Bundle) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    document = record(bundle.manifest, "fp16", "PyTorch", "onnxruntime-cpu", [CASE]).to_document()
    assert list(document)[:2] == ["format", "passed"]
    assert document["format"] == 1
    assert document["bundle"] == {"name": "tiny", "identity": "1" * 64}
    assert document["versions"]["vaedeploy"] == __version__
    assert document["versions"]["onnxruntime"] == onnxruntime.__version__
    assert document["machine"] == {"cpu": cpu_name(), "gpu": None, "cuda": None}
    told = datetime.strptime(document["date"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    assert before <= told <= datetime.now(UTC)
    assert document["limits"].keys() == {"fp16"}
    assert document["limits"]["fp16"][0] == {
        "metric": "rel_l2", "bound": 5e-3, "upper": True, "reason": LIMITS["fp16"][0].reason,
    }  # fmt: skip
    assert document["cases"][0]["seconds"] == 0.5


@pytest.mark.skipif(COMPILER is None, reason="needs gcc")
def test_a_report_names_the_gpu_that_computed(bundle: Bundle, tmp_path: Path) -> None:
    """With a stand-in for the driver, in a process of its own, since a driver stays for the life of one."""
    program = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(SUPPORT)!r})
from cuda_driver import load_driver, show_devices
driver = load_driver(Path({str(tmp_path)!r}))
show_devices(driver, 1)
from vaedeploy.bundle import Bundle
from vaedeploy.verify.record import record
manifest = Bundle.open({str(bundle.path)!r}).manifest
for backend in ("onnxruntime-cpu", "onnxruntime-cuda"):
    machine = record(manifest, "fp32", "", backend, []).machine
    print(machine.gpu and machine.gpu.compute_capability, machine.cuda)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"None None\n\d+\.\d+ \d+\.\d+\n", done.stdout)


def test_limits_of_the_caller_are_told(bundle: Bundle) -> None:
    own = (Limit("rel_l2", 0.5, True, "the caller's"),)
    assert record(bundle.manifest, "fp16", "", "", [CASE], limits={"fp16": own}).limits == {"fp16": own}


def test_a_report_of_before_this_is_read() -> None:
    """As 0.1.0's first bundles have it: without a format, a bundle, versions, a machine, a date, limits and times."""
    new = Report("fp16", "PyTorch", "onnxruntime-cpu", (CASE,)).to_document()
    old = {key: new[key] for key in ("passed", "precision", "reference", "backend")}
    old["cases"] = [{key: value for key, value in case.items() if key != "seconds"} for case in new["cases"]]
    read = msgspec.json.decode(json.dumps(old), type=Report)
    assert read.passed
    assert (read.bundle, read.date, read.cases[0].seconds, read.seconds) == (None, None, None, 0.0)


@pytest.mark.parametrize(
    ("told", "name"),
    [
        ("processor\t: 0\nmodel name\t: A CPU @ 2 GHz\n", "A CPU @ 2 GHz"),
        (
            "cpu family\t: 6\nmodel\t: 207\nmodel name\t: A CPU\n\ncpu family\t: 7\nmodel name\t: Another\n",
            "A CPU, family 6, model 207",
        ),
        ("BogoMIPS\t: 50\n", None),
        (None, None),
    ],
)
def test_the_name_of_the_cpu(tmp_path: Path, told: str | None, name: str | None) -> None:
    place = tmp_path / "cpuinfo"
    if told is not None:
        place.write_text(told)
    assert cpu_name(place) == (name or platform.processor() or platform.machine())

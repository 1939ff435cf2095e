"""A report as CI systems read it."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import msgspec

from vaedeploy.system.gpu import Gpu
from vaedeploy.verify.junit import junit_xml
from vaedeploy.verify.report import Case, Machine, Report, Subject

GOOD = Case("encoder", "odd", "latent_mean", "onnxruntime", 3, 72, 88, 1e-6, 1e-7, 2e-6)
BAD = Case(
    "decoder", "odd", "image", "onnxruntime", 3, 72, 88, 1e-2, 1e-3, 9.99e-4, psnr=40.0, pixels_off=0.5, max_levels=2,
    failures=("relative error is 0.000999; it must be at most 2e-05", "and <more> & \x1b[31m"),
    findings=("It is dark.",),
)  # fmt: skip


def test_every_case_is_a_test() -> None:
    root = ET.fromstring(junit_xml(Report("fp32", "PyTorch & friends", "onnxruntime-cpu", (GOOD, BAD)), "mine"))
    (suite,) = root
    for element in (root, suite):
        assert {"tests": "2", "failures": "1", "errors": "0", "skipped": "0"}.items() <= element.attrib.items()
    assert suite.attrib["name"] == "mine"
    properties = {p.attrib["name"]: p.attrib["value"] for p in suite.iter("property")}
    assert properties == {"precision": "fp32", "reference": "PyTorch & friends", "backend": "onnxruntime-cpu"}
    good, bad = suite.iter("testcase")
    assert good.attrib == {"classname": "mine.onnxruntime", "name": "encoder latent_mean, odd (3x72x88)"}
    assert good.find("failure") is None
    assert good.findtext("system-out") == "Relative error (L2): 2.0e-06\nLargest error (output's units): 1.0e-06"
    failure = bad.find("failure")
    assert failure is not None
    assert failure.attrib == {"message": BAD.failures[0], "type": "limit"}
    assert failure.text == f"{BAD.failures[0]}\nand <more> & \\x1b[31m"
    assert bad.findtext("system-out", "").splitlines()[-1] == "It is dark."


def test_names_of_strangers_are_still_xml() -> None:
    root = ET.fromstring(junit_xml(Report("fp32", "", "", ()), "a\x00b\udcff<"))
    assert root[0].attrib["name"] == "a\\x00b\\xff<"


def test_times_and_where_it_was() -> None:
    """Outputs of one call share its time, so that the suite's is the sum."""
    report = Report(
        "fp32", "PyTorch", "onnxruntime-cuda", tuple(msgspec.structs.replace(c, seconds=0.75) for c in (GOOD, BAD)),
        bundle=Subject("mine", "1" * 64), versions={"vaedeploy": "0.1.0", "onnxruntime-gpu": "1.32.0"},
        machine=Machine("A CPU", Gpu("A GPU", "9.0", 80.0), "13.0"), date="2026-11-26T12:00:00Z",
    )  # fmt: skip
    root = ET.fromstring(junit_xml(report, "mine"))
    (suite,) = root
    assert (root.get("time"), suite.get("time"), suite.get("timestamp")) == ("1.500", "1.500", "2026-11-26T12:00:00Z")
    assert [test.get("time") for test in suite.iter("testcase")] == ["0.750", "0.750"]
    properties = {p.attrib["name"]: p.attrib["value"] for p in suite.iter("property")}
    assert properties == {
        "precision": "fp32", "reference": "PyTorch", "backend": "onnxruntime-cuda", "vae": "mine", "identity": "1" * 64,
        "cpu": "A CPU", "gpu": "A GPU", "version of vaedeploy": "0.1.0", "version of onnxruntime-gpu": "1.32.0",
    }  # fmt: skip

"""A report as CI systems read it."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from vaedeploy.verify.junit import junit_xml
from vaedeploy.verify.report import Case, Report

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

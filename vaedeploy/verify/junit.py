"""Report → JUnit's XML, which CI systems show case by case."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from vaedeploy.system.text import printable
from vaedeploy.verify.report import Report
from vaedeploy.verify.words import METRIC_WORDS, METRICS, metric_text


def junit_xml(report: Report, name: str) -> bytes:
    """A report as one JUnit document: a test for each case, named by what ran, the size and the output.

    name: of the bundle, for the suite. A failed case has its sentences; each case has its metrics as output.
    """
    failed = sum(not case.passed for case in report.cases)
    counts = {"tests": str(len(report.cases)), "failures": str(failed), "errors": "0", "skipped": "0"}
    root = ET.Element("testsuites", {"name": "vaedeploy verify", **counts})
    suite = ET.SubElement(root, "testsuite", {"name": printable(name), **counts})
    properties = ET.SubElement(suite, "properties")
    for key in ("precision", "reference", "backend"):
        ET.SubElement(properties, "property", {"name": key, "value": printable(getattr(report, key))})
    for case in report.cases:
        label = {"classname": f"{name}.{case.form}", "name": f"{case.part} {case.output}, {case.name} ({case.size})"}
        test = ET.SubElement(suite, "testcase", {key: printable(text) for key, text in label.items()})
        if case.failures:
            message = {"message": printable(case.failures[0]), "type": "limit"}
            ET.SubElement(test, "failure", message).text = printable("\n".join(case.failures))
        texts = {metric: metric_text(case, metric) for metric in METRICS}
        lines = [
            f"{METRIC_WORDS[metric][0]} ({METRIC_WORDS[metric][1]}): {text}" for metric, text in texts.items() if text
        ]
        ET.SubElement(test, "system-out").text = printable("\n".join([*lines, *(case.findings or ())]))
    ET.indent(root)
    document: bytes = ET.tostring(root, "utf-8", xml_declaration=True)
    return document + b"\n"

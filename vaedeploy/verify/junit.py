"""Report → JUnit's XML, which CI systems show case by case."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from vaedeploy.system.text import printable
from vaedeploy.verify.report import Report
from vaedeploy.verify.words import METRIC_WORDS, METRICS, metric_text


def junit_xml(report: Report, name: str) -> bytes:
    """A report as one JUnit document: a test for each case, named by what ran, the size and the output.

    name: the bundle's, for the suite. A failed case has its sentences; each case has its metrics as output, and its
    time where the report has it.
    """
    failed = sum(not case.passed for case in report.cases)
    counts = {"tests": str(len(report.cases)), "failures": str(failed), "errors": "0", "skipped": "0"}
    counts["time"] = _seconds(report.seconds)
    root = ET.Element("testsuites", {"name": "vaedeploy verify", **counts})
    date = {} if report.date is None else {"timestamp": report.date}
    suite = ET.SubElement(root, "testsuite", {"name": printable(name), **counts, **date})
    properties = ET.SubElement(suite, "properties")
    for key, value in _properties(report).items():
        ET.SubElement(properties, "property", {"name": key, "value": printable(value)})
    for case in report.cases:
        label = {"classname": f"{name}.{case.form}", "name": f"{case.part} {case.output}, {case.name} ({case.size})"}
        test = ET.SubElement(suite, "testcase", {key: printable(text) for key, text in label.items()})
        if case.seconds is not None:
            test.set("time", _seconds(case.seconds))
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


def _properties(report: Report) -> dict[str, str]:
    known = {"precision": report.precision, "reference": report.reference, "backend": report.backend}
    if report.bundle is not None:
        known |= {"vae": report.bundle.name, "identity": report.bundle.identity}
    if report.machine is not None:
        known["cpu"] = report.machine.cpu
        known |= {} if report.machine.gpu is None else {"gpu": report.machine.gpu.name}
    return known | {f"version of {package}": version for package, version in report.versions.items()}


def _seconds(value: float) -> str:
    return f"{value:.3f}"

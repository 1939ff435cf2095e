"""What ``vaedeploy verify --backend`` noted in a bundle of a backend that runs graphs."""

from __future__ import annotations

import re

import msgspec

from vaedeploy.bundle import Bundle
from vaedeploy.values.kinds import Precision


class Verdict(msgspec.Struct, frozen=True):
    """passed, pace: see ``verify.report.Report``."""

    passed: bool
    pace: float | None = None


def report_name(backend: str, precision: Precision | None = None, processor: str | None = None) -> str:
    """The file of a report in a bundle. precision, processor: where a verdict holds for these alone."""
    kind = None if processor is None else re.sub(r"[^a-z0-9]+", "-", processor.lower()).strip("-")
    return f"report/{'.'.join(filter(None, (backend, precision, kind)))}.json"


def read_verdict(bundle: Bundle, name: str) -> Verdict | None:
    """The verdict of the report in the file ``name`` of a bundle; None where there is none, or it is no report."""
    if name not in bundle.manifest.files:
        return None
    try:
        return msgspec.json.decode(bundle.read(name), type=Verdict)
    except (msgspec.MsgspecError, RecursionError):
        return None

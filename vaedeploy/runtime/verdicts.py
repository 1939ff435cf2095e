"""What ``vaedeploy verify --backend`` noted in a bundle about backends that run graphs."""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from vaedeploy.bundle import Bundle
from vaedeploy.values.kinds import Precision

ENDING = ".json"


class Device(msgspec.Struct, frozen=True):
    """A GPU, by name."""

    name: str


class Place(msgspec.Struct, frozen=True):
    """cpu, gpu: see ``verify.report.Machine``."""

    cpu: str
    gpu: Device | None = None


class Verdict(msgspec.Struct, frozen=True):
    """What a report says in short: see ``verify.report.Report``."""

    passed: bool
    pace: float | None = None
    backend: str = ""
    precision: str = ""
    reference: str = ""
    date: str | None = None
    machine: Place | None = None


def report_name(backend: str, precision: Precision | None = None, processor: str | None = None) -> str:
    """The file of a report in a bundle. precision, processor: given where a verdict holds for these only."""
    kind = None if processor is None else re.sub(r"[^a-z0-9]+", "-", processor.lower()).strip("-")
    return f"report/{'.'.join(filter(None, (backend, precision, kind)))}{ENDING}"


def read_verdicts(bundle: Bundle, backend: str) -> Iterator[Verdict]:
    """All verdicts on ``backend`` with a bundle's graphs."""
    start = report_name(backend).removesuffix(ENDING)
    for name in sorted(bundle.manifest.files):
        if name.startswith(f"{start}.") and (verdict := read_verdict(bundle, name)):
            yield verdict


def read_verdict(bundle: Bundle, name: str) -> Verdict | None:
    """The verdict of the report in the file ``name`` of a bundle; None where there is none, or it is no report."""
    if name not in bundle.manifest.files:
        return None
    try:
        return msgspec.json.decode(bundle.read(name), type=Verdict)
    except (msgspec.MsgspecError, RecursionError):
        return None

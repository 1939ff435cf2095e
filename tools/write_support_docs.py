"""Write docs/support.md, and its table in README.md and docs/index.md: what was built, run and verified, and where.

python tools/write_support_docs.py

The records are those of benchmarks/results/support.json. When something runs in a new place, add a record there: no
text is to be changed. What a reader of the summary has to know of a record, such as that it is of an earlier version,
is its caveat. The GPU kinds are those of profiles/.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vaedeploy.engines.profile import CAPABILITIES, profiles
from vaedeploy.runtime.backends import BACKENDS, ENGINES

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "support.md"
RECORDS = ROOT / "benchmarks" / "results" / "support.json"
AROUND = RECORDS.with_name("support_around.json")
SUMMARIES = (ROOT / "README.md", ROOT / "docs" / "index.md")
BEGIN, END = "<!-- support: tools/write_support_docs.py writes this -->", "<!-- /support -->"

STAGES = ("built", "run", "verified")
"""What a record may say. Each says those before it as well: what is verified has run."""

HEAD = """# What has run where

`python tools/write_support_docs.py` writes this page from `benchmarks/results/support.json`, which has a record for
each thing that was done: when, and the command that repeats it. What has no record has not been done.

- **built**: the backend made an engine of a full-size VAE.
- **run**: the runtime encoded and decoded there, and tests of it passed.
- **verified**: the results were compared with PyTorch by the limits of [verification.md](verification.md), and passed.

`vaedeploy inspect BUNDLE` shows what a bundle of yours has passed, and `vaedeploy doctor` what this machine can run.

## Backends
"""

KINDS = """
## GPU kinds

`vaedeploy build --profile NAME` takes these profiles. "–" means that the backend does not build for the GPU. The CUDA
provider of ONNX Runtime needs no engine, and runs a bundle's graphs.
"""

PROGRAMS = """
## In other programs

Other software that runs bundles, from `benchmarks/results/support_around.json`.
"""

LOG = """
## Records
"""

ADD = """
## A new GPU

```bash
make test-gpu
vaedeploy verify BUNDLE --backend tensorrt-rtx --profile rtx4090
```

The second command exits with 0 where the engines passed. Then add a record to `benchmarks/results/support.json`, run
`python tools/write_support_docs.py`, and send both.
"""


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n" + "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def records() -> list[dict[str, Any]]:
    return json.loads(RECORDS.read_text(encoding="utf-8"))


def capabilities(record: dict[str, Any]) -> list[str]:
    given = record.get("capability", [])
    return [given] if isinstance(given, str) else given


def said(found: list[dict[str, Any]], stage: str) -> list[dict[str, Any]]:
    """Those of these records that say the stage."""
    return [record for record in found if STAGES.index(record["stage"]) >= STAGES.index(stage)]


def place(record: dict[str, Any]) -> str:
    """Where something was done, with what the record says against it."""
    caveat = record.get("caveat")
    return record["on"] + (f" ({caveat})" if caveat else "")


def places(found: list[dict[str, Any]], stage: str) -> str:
    """Where the stage was reached, in words."""
    names = dict.fromkeys(
        f"compute capability {', '.join(capabilities(r))}" if stage == "built" else place(r) for r in said(found, stage)
    )
    return "; ".join(names) or "**not yet**"


def summary() -> str:
    """A line for each backend."""
    rows = []
    for backend in BACKENDS:
        found = [record for record in records() if record["backend"] == backend]
        built = places(found, "built") if backend in ENGINES else "needs no build"
        rows.append([f"`{backend}`", built, places(found, "run"), places(found, "verified")])
    return table(["backend", "built", "run", "verified"], rows)


def state(backend: str, capability: str) -> str:
    """The most that is recorded of a backend for a compute capability."""
    if backend in CAPABILITIES and capability not in CAPABILITIES[backend]:
        return "–"
    found = [r for r in records() if r["backend"] == backend and capability in capabilities(r)]
    if not found:
        return "not yet"
    best = max(found, key=lambda record: STAGES.index(record["stage"]))
    where = "" if best["stage"] == "built" else f" on {place(best)}"
    return f"{best['stage']}{where}, {best['date']}"


def kinds() -> str:
    own = profiles()
    known = sorted(
        {profile.compute_capability for profile in own.values()}, key=lambda c: tuple(map(int, c.split(".")))
    )
    backends = ("tensorrt-rtx", "tensorrt", "onnxruntime-cuda")
    rows = []
    for capability in known:
        names = ", ".join(f"`{name}`" for name, profile in own.items() if profile.compute_capability == capability)
        rows.append([capability, names, *(state(backend, capability) for backend in backends)])
    return table(["compute capability", "profiles", *(f"`{backend}`" for backend in backends)], rows)


def log() -> str:
    rows = [
        [
            record["date"],
            f"`{record['backend']}`",
            record["stage"],
            record["precision"],
            record["on"] + (f", for {', '.join(capabilities(record))}" if record["stage"] == "built" else ""),
            record["with"],
            record["by"],
            f"`{record['record']}`",
        ]
        for record in sorted(records(), key=lambda record: record["date"], reverse=True)
    ]  # fmt: skip
    return table(["when", "backend", "stage", "precision", "where", "with", "by what", "record"], rows)


def around() -> list[dict[str, str]]:
    """Records of bundles in other programs."""
    return json.loads(AROUND.read_text(encoding="utf-8"))


def programs() -> str:
    rows = [[r["what"], r["with"], r["on"], r["date"], r["by"], f"`{r['record']}`"] for r in around()]
    return table(["what ran", "with", "where", "when", "by what", "record"], rows)


def render() -> str:
    """The text of the page."""
    return "".join([HEAD, summary(), KINDS, kinds(), PROGRAMS, programs(), LOG, log(), ADD])


def with_summary(text: str) -> str:
    """A document with the table between its two marks made anew."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the document lacks the line {BEGIN} or {END}")
    return f"{before}{BEGIN}\n{summary()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
    for document in SUMMARIES:
        document.write_text(with_summary(document.read_text(encoding="utf-8")), encoding="utf-8")

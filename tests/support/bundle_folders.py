"""Folders of bundles: what lies there, and processes that write there."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from places import ROOT

from vaedeploy.bundle import Bundle
from vaedeploy.values.latent import LatentSpec

LATENT = LatentSpec(channels=2, factor=4, scale=1.0)
FILES = ["bundle.json", "decoder.onnx", "decoder.onnx.data", "encoder.onnx", "encoder.onnx.data"]


def names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names(folder)}


def edit(bundle: Bundle, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest on disk, as JSON. It has no seal then, as those of before."""
    told = json.loads((bundle.path / "bundle.json").read_text())
    del told["seal"]
    change(told)
    (bundle.path / "bundle.json").write_text(json.dumps(told))


# Full disks and other processes

HELPER = ROOT / "tests" / "support"
SCRIPT = f"""
import sys, time
from pathlib import Path
sys.path.insert(0, {str(HELPER)!r})
from tiny_bundle import LatentSpec, create_bundle, tiny_bundle, tiny_manifest
out = Path(sys.argv[1])
"""


def script(body: str, out: Path, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-B", "-c", SCRIPT + body, str(out)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


HOLD = """
with create_bundle(out, force=True) as draft:
    (draft.path / "encoder.onnx").write_bytes(b"x")
    (draft.path / "decoder.onnx").write_bytes(b"x")
    print("writing", flush=True)
    sys.stdin.readline()
    draft.finish(tiny_manifest(LatentSpec(channels=2, factor=4, scale=1.0)))
"""


def small_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

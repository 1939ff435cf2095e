"""Files as strangers make them: each gives a result or an error that says what is wrong, in bounded time and memory.

``VAEDEPLOY_FUZZ_CASES`` says how many cases there are altogether, and ``VAEDEPLOY_FUZZ_SEED`` which: make fuzz.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="it needs signals and limits")]

SHARES = {"manifest": 0.3, "profile": 0.2, "latent": 0.2, "image": 0.2, "onnx": 0.1}
"""Of all cases: one of ONNX takes ten times as long as the others."""

SCRIPT = Path(__file__).parent / "support" / "fuzz.py"


@pytest.mark.parametrize("kind", SHARES)
def test_every_file_gets_an_answer(kind: str) -> None:
    cases = round(SHARES[kind] * int(os.environ.get("VAEDEPLOY_FUZZ_CASES", "1400")))
    seed = os.environ.get("VAEDEPLOY_FUZZ_SEED", "0")
    command = [sys.executable, str(SCRIPT), kind, "--cases", str(cases), "--seed", seed]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300 + cases, check=False)
    assert not ended.stdout, f"a case of these is run again by --first NUMBER --cases 1 --seed {seed}:\n{ended.stdout}"
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert ended.stderr.splitlines()[-1] == f"{kind} {cases - 1}"

"""A process that runs command lines and Python with huggingface_hub's real client, which reads HF_ENDPOINT, HF_HOME and
the like when it is imported. One process runs many, since it takes a second to start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from command_line import Ended
from places import ROOT

PROGRAM = """
import contextlib, io, json, sys, time, traceback
plain = sys.stdout
time.sleep = lambda seconds, sleep=time.sleep: sleep(min(seconds, 0.01))  # the client waits between its attempts
for line in sys.stdin:
    told = json.loads(line)
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            if "python" in told:
                exec(told["python"], {})
            else:
                from vaedeploy.cli import main
                main(told["arguments"])
        except SystemExit as end:
            code = end.code
        except Exception:
            code = "raised"
            traceback.print_exc()
    print(json.dumps([code, out.getvalue(), err.getvalue()]), file=plain, flush=True)
"""


class HubClient:
    """``home``: where its caches are: ``hf`` is huggingface_hub's, ``vaedeploy`` is ours."""

    def __init__(self, home: Path, endpoint: str, **variables: str) -> None:
        self.home = home
        kept = {k: v for k, v in os.environ.items() if not k.upper().startswith("HF_") and "PROXY" not in k.upper()}
        own = {"HF_HOME": str(home / "hf"), "XDG_CACHE_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            env={**kept, **own, "HF_ENDPOINT": endpoint, **variables},
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> HubClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def run(self, *arguments: object) -> Ended:
        """``vaedeploy`` with these arguments."""
        return self._ask({"arguments": [str(argument) for argument in arguments]})

    def python(self, program: str) -> Ended:
        """A program. Its code is "raised" where it raised."""
        return self._ask({"python": program})

    def _ask(self, told: dict[str, Any]) -> Ended:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(told) + "\n")
        self._process.stdin.flush()
        return Ended(*json.loads(self._process.stdout.readline()))

"""The end of a process, and the calls into libraries that it waits for."""

from __future__ import annotations

import subprocess
import sys

INTERRUPTED = """
import threading
from vaedeploy.system import processes

class Interrupted(threading.Condition):
    def __exit__(self, *error):
        super().__exit__(*error)
        raise KeyboardInterrupt  # as a signal that arrives here does

processes._change, kept = Interrupted(), processes._change
try:
    with processes.native_call():
        pass
except KeyboardInterrupt:
    print("interrupted", flush=True)
processes._change = kept
"""


def test_a_signal_at_the_beginning_of_a_call_does_not_hold_up_the_end() -> None:
    ended = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "interrupted\n", "")

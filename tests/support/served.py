"""``vaedeploy serve`` as a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any


@contextmanager
def served(
    *arguments: object, warm_up: str = "16x16", files: int = 1024, stdout: int | IO[Any] = subprocess.PIPE
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server that is ready, and its port. files: how many it may have open. What it has said by then is read."""
    options = ("--port", "0", "--warm-up", warm_up)
    server = [sys.executable, "-m", "vaedeploy", "serve", *map(str, arguments), *options]
    command = ["sh", "-c", f'ulimit -n {files}; exec "$@"', "sh", *server]
    process = subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = ""
    try:
        for line in process.stderr:
            said += line
            if line.startswith("Ready after"):
                break
        found = re.search(r"Listening on http://\S+:(\d+) for", said)
        assert found, said
        yield process, int(found[1])
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()

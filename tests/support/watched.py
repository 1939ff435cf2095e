"""Watches this process: what it runs, how long a step takes, and how much memory it may have."""

from __future__ import annotations

import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

RUNS = (
    "builtins.breakpoint", "builtins.input", "code.", "compile", "cpython.run_", "ctypes.", "exec", "import",
    "marshal.", "os.exec", "os.fork", "os.kill", "os.link", "os.mkdir", "os.posix_spawn", "os.remove", "os.rename",
    "os.rmdir", "os.spawn", "os.symlink", "os.system", "os.truncate", "pickle.", "shutil.", "socket.", "subprocess.",
    "urllib.", "webbrowser.",
)  # fmt: skip
"""Beginnings of the audit events of what no weights file may bring about. Python's own documentation lists them."""

_seen: list[str] | None = None
_installed = False


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if _seen is None:
        return
    if event == "open":
        flags = arguments[2]
        if isinstance(flags, int) and flags & 3:
            _seen.append(f"open {arguments[0]!r} to write")
    elif event.startswith(RUNS):
        _seen.append(f"{event} {arguments!r:.200}")


@contextmanager
def what_runs() -> Iterator[list[str]]:
    """Context that gives what was run, imported or written within it, as far as Python tells of it."""
    global _seen, _installed
    if not _installed:  # a hook stays for good
        sys.addaudithook(_hook)
        _installed = True
    _seen = found = []
    try:
        yield found
    finally:
        _seen = None


@contextmanager
def no_hang(seconds: int = 20) -> Iterator[None]:
    """Context that ends in a TimeoutError where it takes longer: a hang, and not a slow machine."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"it took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def memory_limit(more: int = 4 << 30) -> Iterator[None]:
    """Context in which this process may take ``more`` bytes of address space than it has; a MemoryError tells."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))

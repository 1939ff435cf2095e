"""What the running calls of one VAE share: memory, and a workspace."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

from vaedeploy.errors import InputError
from vaedeploy.runtime.rows.store import Workspace
from vaedeploy.system.memory import LEAST_LIMIT, free_memory, meant_unit
from vaedeploy.system.processes import tell_of_fork
from vaedeploy.system.progress import Progress, silent
from vaedeploy.values.words import counted

__all__ = ["SHARE", "Budget"]

SHARE = 0.7
"""Share of the free memory that calls take where the caller names no limit."""

FRESH = 0.1
"""Seconds for which calls go by what was free: to ask takes as long as one call in thirty of a small image."""

UNLIMITED = 1 << 62


class Budget:
    """Bytes that all running calls of a VAE may take together, beyond the open VAE.

    most: the limit; None for a share of what is free when the first of the running calls begins, or was free up to
    ``FRESH`` seconds before. free: says how much that is. progress: reports how far calls by rows are. workspace: a
    folder for what memory does not hold.

    Raises InputError for a limit that is no number of bytes, and for a workspace that cannot be used.
    """

    def __init__(
        self,
        most: int | None = None,
        free: Callable[[], int | None] = free_memory,
        progress: Progress = silent,
        workspace: str | Path | None = None,
    ) -> None:
        if most is not None and (isinstance(most, bool) or not isinstance(most, int)):
            raise InputError(f"max_memory is {most!r}; it must be a whole number of bytes, such as 4_000_000_000")
        if most is not None and most < 1:
            raise InputError(f"max_memory is {most}; it must be a number of bytes above 0, or None")
        if most is not None and most < LEAST_LIMIT:
            zeros = {"G": "_000_000_000", "M": "_000_000", None: ""}[meant_unit(most)]
            hint = f"Did you mean {most}{zeros}?" if zeros else f"Give {LEAST_LIMIT:,} or more"
            raise InputError(f"max_memory is {counted(most, 'byte')}, and nothing is computed in so few. {hint}")
        self.most, self._free, self.progress = most, free, progress
        self.workspace = None if workspace is None else Workspace(workspace)
        self.forked()
        tell_of_fork(self)

    def forked(self) -> None:
        """In a forked process no call is running."""
        self._changed = threading.Condition()
        self._limit = self._kept = 0
        self._fresh_until = -math.inf
        self._taken: list[int] = []

    def limit(self, kept: int = 0) -> int:
        """Bytes that a call could take if it were the only one. kept: bytes that are not free because an earlier call
        kept them for it.
        """
        if self.most is not None:
            return self.most
        free = self._free()
        return UNLIMITED if free is None else int((free + kept) * SHARE)

    @contextmanager
    def take(self, choose: Callable[[int, bool], int | None], kept: int = 0) -> Iterator[None]:
        """Context of a running call. Waits until other calls leave it enough.

        kept: see ``limit``. choose: takes the bytes that are left and whether no other call is running. It returns how
        many the call takes, or None to wait for others.
        """
        with self._changed:
            while True:
                if not self._taken and (kept != self._kept or monotonic() >= self._fresh_until):
                    self._limit, self._kept = self.limit(kept), kept
                    self._fresh_until = monotonic() + FRESH
                taken = choose(self._limit - sum(self._taken), not self._taken)
                if taken is not None:
                    break
                self._changed.wait()
            self._taken.append(taken)
        try:
            yield
        finally:
            with self._changed:
                self._taken.remove(taken)
                self._changed.notify_all()

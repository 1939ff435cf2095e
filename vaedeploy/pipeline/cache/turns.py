"""Which worker makes which shard, and which shard it makes next, so that it can read ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable

from vaedeploy.pipeline.cache.plan import Shard


class Turns:
    """The shards that no worker has begun. ``len`` is their number.

    A worker that is given a shard is told the next one too, which is put aside for it: it reads the first pictures of
    that while it encodes the last ones of this. Once no others are left, a worker is given what was put aside for
    another, so that none is idle.
    """

    def __init__(self, shards: Iterable[Shard]) -> None:
        self._waiting = deque(shards)
        self._aside: dict[Hashable, Shard] = {}

    def __len__(self) -> int:
        return len(self._waiting) + len(self._aside)

    def take(self, worker: Hashable) -> tuple[Shard, Shard | None]:
        """The shard that ``worker`` is to make, and the one that most likely follows. There must be one left."""
        if worker in self._aside:
            shard = self._aside.pop(worker)
        elif self._waiting:
            shard = self._waiting.popleft()
        else:
            shard = self._aside.popitem()[1]
        if self._waiting:
            self._aside[worker] = self._waiting.popleft()
        return shard, self._aside.get(worker)

    def give_back(self, worker: Hashable, shard: Shard) -> None:
        """Put what a dead ``worker`` had at the front: the shard that it was making, and the one after that."""
        if worker in self._aside:
            self._waiting.appendleft(self._aside.pop(worker))
        self._waiting.appendleft(shard)

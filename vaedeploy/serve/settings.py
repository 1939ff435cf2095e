"""What a server is started with."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Settings:
    """How a server listens, and what it bounds.

    host, port: where it listens; port 0 takes a free one.
    warm_up: (height, width) of images in pixels that each VAE runs once at before the server says that it is ready.
    max_batch: the most items of a request, and of requests that are joined into one call.
    max_delay: the longest that a request waits for others to be joined with, in seconds.
    max_queue: the most requests that wait for each VAE, beside those that are computed.
    max_body: the most bytes of a request's body, and of the tensors of an answer.
    joins: whether requests of one size are joined; None joins them on a GPU, and not on a CPU, where several calls side
        by side are faster than a batch.
    max_connections: the most open connections; further ones are closed. None for what the process's limit on open files
        leaves.
    patience: seconds that a client may stall: in the middle of a request, or while it takes its answer.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    warm_up: tuple[tuple[int, int], ...] = ()
    max_batch: int = 8
    max_delay: float = 0.002
    max_queue: int = 64
    max_body: int = GIB // 4
    joins: bool | None = None
    max_connections: int | None = None
    patience: float = 20.0

    @property
    def max_held(self) -> int:
        """The most bytes in memory of all requests' bodies together."""
        return 4 * self.max_body

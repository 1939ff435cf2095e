"""A connection of uvicorn that does not wait for its client for ever.

uvicorn has a limit only on the time between two requests. A client that stops in the middle of a request's head, that
goes on sending a body that was refused, or that does not take its answer, would keep its connection, and would keep the
server from stopping.
"""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

Wait = Literal["sends", "takes", "closes"]
"""What is waited for: that the client sends the rest of a head or of a refused body ("sends"), that it takes what is
sent, or that it takes the last of it before the connection is closed.
"""


FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\ncontent-type: application/json\r\n"
    b'content-length: 58\r\n\r\n{"error":"too many connections are open; try again later"}'
)
"""The answer to a connection beyond ``most``."""


class Connection(H11Protocol):
    """patience, most: seconds and connections, see ``Settings``; set on a class derived for a server."""

    patience: float
    most: int

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._waits: dict[Wait, asyncio.TimerHandle] = {}

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait("sends")
        if len(self.connections) > self.most:
            # With no file descriptors left, asyncio would log a traceback for each waiting connection, again and again.
            self.transport.write(FULL)
            self.transport.close()
            self._close_in_time()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        for what in list(self._waits):
            self._stop(what)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait("takes")

    def resume_writing(self) -> None:
        self._stop("takes")
        super().resume_writing()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._look()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._close_in_time()

    def shutdown(self) -> None:
        super().shutdown()
        self._close_in_time()

    def _look(self) -> None:
        """Start or stop waiting for the client: it is waited for in the middle of something that nobody works on."""
        works = self.cycle is not None and not self.cycle.response_complete
        rests = self.cycle is not None and self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]
        if works or rests:
            self._stop("sends")
        else:
            self._wait("sends")
        self._close_in_time()

    def _close_in_time(self) -> None:
        """Bound a close, which by itself waits until the client has taken everything."""
        if self.transport.is_closing():
            self._wait("closes")

    def _wait(self, what: Wait) -> None:
        """Abort the connection unless ``_stop`` is called in time. A wait that has begun is not begun again."""
        if what not in self._waits:
            self._waits[what] = self.loop.call_later(self.patience, self.transport.abort)

    def _stop(self, what: Wait) -> None:
        if timer := self._waits.pop(what, None):
            timer.cancel()

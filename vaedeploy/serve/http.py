"""Requests and answers of HTTP, as the routes see them, on top of ASGI."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator, MutableMapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import msgspec

from vaedeploy.serve.refusals import GoneError, RequestError, bad, busy, too_large
from vaedeploy.serve.settings import Settings

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Piece = bytes | memoryview
Result = TypeVar("Result")

ABSOLUTE = re.compile(r"\Ahttps?://[^/]*/?", re.IGNORECASE)
"""The part of a URL before the path."""

SLOWEST = 10_000
"""Bytes per second at which a body must arrive at least, once the client's patience is used up."""

JOINED = 1 << 16
"""Pieces of a body are joined up to this many bytes: copying them takes less time than sending another piece."""

SENT_AT_ONCE = 1 << 20
"""Bytes that are handed to the connection at once; the next ones wait until the client has taken these."""


@dataclass(frozen=True)
class Answer:
    """An answer: its body is ``pieces``, one after the other."""

    pieces: Sequence[Piece]
    content_type: str = "application/json"
    status: HTTPStatus = HTTPStatus.OK
    headers: MutableMapping[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return sum(map(len, self.pieces))


def json_answer(value: object, status: HTTPStatus = HTTPStatus.OK) -> Answer:
    return Answer([msgspec.json.encode(value)], status=status)


class Held:
    """The bytes of all requests' bodies that are in memory."""

    def __init__(self, most: int) -> None:
        self._most, self.bytes = most, 0

    def take(self, size: int) -> None:
        """Raise RequestError (503) if there is no room for as many bytes."""
        if self.bytes + size > self._most:
            raise busy("the bodies of other requests fill the memory for them; try again later")
        self.bytes += size

    def free(self, size: int) -> None:
        self.bytes -= size


class Request:
    """A request. aside: threads for what would hold up the event loop.

    told: what the log says of it. model: the name of its model, empty until it is known.
    queued: seconds in the line, once it has left it.
    """

    def __init__(self, scope: Scope, receive: Receive, settings: Settings, held: Held, aside: Executor) -> None:
        self.method: str = scope["method"]
        # A proxy may send a whole URL (RFC 9112, 3.2.2).
        self.path: str = ABSOLUTE.sub("/", scope["path"])
        self.headers: dict[str, str] = {}
        for name, value in ((name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]):
            # A list may come as several headers of one name.
            self.headers[name] = ", ".join(filter(None, (self.headers.get(name), value)))
        self.told: dict[str, object] = {}
        self.model = ""
        self.queued: float | None = None
        self._query: bytes = scope["query_string"]
        self._receive, self._settings, self._held, self._aside = receive, settings, held, aside
        self._taken = 0
        self._read = False

    @property
    def holds_back(self) -> bool:
        """Whether the client waits for a "100 Continue" that it has not got: what comes next on its connection may be
        the body, or another request.
        """
        return not self._read and "expect" in self.headers

    @property
    def query(self) -> dict[str, str]:
        """The parameters after the question mark. Raises RequestError (400) for one that is given twice."""
        pairs = parse_qsl(self._query.decode("latin-1"), keep_blank_values=True)
        query = dict(pairs)
        if len(query) < len(pairs):
            raise bad("a parameter is given twice after the '?'")
        return query

    def check_length(self) -> None:
        """Raise RequestError (400) for a body whose length is stated in two ways: a proxy that believes the other one
        would take what comes next on the connection for another client's request.
        """
        if "content-length" in self.headers and "transfer-encoding" in self.headers:
            raise RequestError(
                HTTPStatus.BAD_REQUEST,
                "the request has both Content-Length and Transfer-Encoding; send one of them",
                closes=True,
            )

    def check_content(self, taken: Sequence[str], advice: str) -> None:
        """Raise RequestError (415) for a body that is compressed, or whose type is stated and begins with none of
        ``taken``. advice: what to send instead.
        """
        if (encoding := self.headers.get("content-encoding", "identity").lower()) != "identity":
            raise RequestError(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"the body's encoding is {encoding}; send it as it is, uncompressed"
            )
        kind = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        # curl and others send this type unless told otherwise.
        if kind and kind != "application/x-www-form-urlencoded" and not kind.startswith(tuple(taken)):
            raise RequestError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"the body is {kind}; {advice}")

    async def body(self) -> bytearray:
        """The body, which is in memory until ``forget``.

        Raises RequestError for one that is too large (413, before it is read where its length is stated), that stalls
        (408), or that finds no memory (503), and GoneError.
        """
        most = self._settings.max_body
        stated = int(self.headers.get("content-length", "0"))  # the protocol's library has checked that it is a number
        if stated > most:
            raise self._too_large(f"has {stated:,} bytes")
        body, loop = bytearray(), asyncio.get_running_loop()
        began, more = loop.time(), True
        self._read = True
        while more:
            until = began + self._settings.patience + len(body) / SLOWEST
            try:
                async with asyncio.timeout_at(until):
                    message = await self._receive()
            except TimeoutError:
                raise RequestError(
                    HTTPStatus.REQUEST_TIMEOUT,
                    f"the body stalled after {len(body):,} bytes; send all of it at once",
                    "stalled",
                    closes=True,
                ) from None
            if message["type"] == "http.disconnect":
                raise GoneError
            data, more = message.get("body", b""), message.get("more_body", False)
            if len(body) + len(data) > most:
                raise self._too_large("is larger")
            self._held.take(len(data))
            self._taken += len(data)
            body += data
        self.told["bytes_in"] = len(body)
        return body

    def forget(self) -> None:
        """Say that the body is no longer in memory."""
        self._held.free(self._taken)
        self._taken = 0

    async def aside(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """The result of ``work`` in another thread. These threads are few, which bounds the memory that they take."""
        return await asyncio.get_running_loop().run_in_executor(self._aside, work, *arguments)

    async def unless_gone(self, result: asyncio.Future[Result]) -> Result:
        """``result``, which is cancelled when the client goes away. Raises GoneError then.

        The body must have been read.
        """
        leaving = asyncio.get_running_loop().create_task(self._disconnected())
        leaving.add_done_callback(lambda _: result.cancel())
        try:
            return await result
        except asyncio.CancelledError:
            if leaving.done():
                raise GoneError from None
            raise
        finally:
            leaving.cancel()

    async def _disconnected(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def _too_large(self, what: str) -> RequestError:
        return too_large(f"the body {what}; this server takes at most {self._settings.max_body:,} bytes (--max-body)")


def address_text(host: str, port: int) -> str:
    """An address as URLs have it: ``127.0.0.1:8000``, ``[::1]:8000``."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def send(send: Send, answer: Answer, *, closes: bool = False) -> None:
    """Send an answer. closes: whether the connection ends with it."""
    headers = {
        "content-type": answer.content_type,
        "content-length": str(answer.size),
        **answer.headers,
        **({"connection": "close"} if closes else {}),
    }
    encoded = [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": answer.status, "headers": encoded})
    body = list(_sendings(answer.pieces))
    for number, data in enumerate(body, start=1):
        await send({"type": "http.response.body", "body": data, "more_body": number < len(body)})


def _sendings(pieces: Sequence[Piece]) -> Iterator[Piece]:
    """A body as it is handed to the connection: small pieces joined, so that a small answer arrives at once, and large
    ones in parts. At least one piece, which may be empty.
    """
    if sum(map(len, pieces)) <= JOINED:
        yield b"".join(pieces)
        return
    for piece in pieces:
        for start in range(0, len(piece), SENT_AT_ONCE):
            yield piece[start : start + SENT_AT_ONCE]

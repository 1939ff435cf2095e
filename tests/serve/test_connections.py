"""Clients that stall, lie about lengths, send too much or go away, on real connections."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import numpy as np
import pytest
from serving import Serving, body_of, post, read_answer, serving, until

from vaedeploy.runtime import VAE

INFER = "/v2/models/tiny-decode/infer"
LATENT = np.zeros((1, 2, 4, 4), np.float32)
BODY, LENGTH = body_of(LATENT)
GOOD = post(INFER, BODY, f"Inference-Header-Content-Length: {LENGTH}")
HEALTH = b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module")
def hasty(vae: VAE) -> Iterator[Serving]:
    """A server that waits 0.2 s for its clients."""
    with serving({"tiny": vae}, patience=0.2, max_body=600_000) as server:
        yield server


def ended(connection: socket.socket) -> bytes:
    """What else comes until the server ends the connection."""
    found = b""
    try:
        while data := connection.recv(1 << 16):
            found += data
    except ConnectionResetError:
        pass
    return found


def send_until_cut_off(connection: socket.socket, first: bytes, again: bytes) -> None:
    with pytest.raises((BrokenPipeError, ConnectionResetError)):  # noqa: PT012  # it fails once, at some time
        connection.sendall(first)
        for _ in range(10_000):
            connection.sendall(again)
            time.sleep(0.005)


@pytest.mark.parametrize(
    "begun", [b"", b"POST", GOOD[:60], HEALTH + b"GET /", HEALTH[:-2]], ids=["nothing", "word", "head", "second", "end"]
)
def test_a_head_that_stalls_ends_the_connection(hasty, begun):
    with hasty.raw(begun) as connection:
        answered = ended(connection)
    assert answered.startswith(b"HTTP/1.1 200") == begun.startswith(HEALTH)


def test_a_head_that_drips_ends_the_connection(hasty):
    """Each byte comes in time, and the whole does not."""
    with hasty.raw() as connection:
        send_until_cut_off(connection, b"GET /v2/health/ready HTTP/1.1\r\nX-Long: ", b"x")


@pytest.mark.parametrize("part", [0, 50, len(BODY) - 1])
def test_a_body_that_stalls_is_told(hasty, part):
    with hasty.raw(GOOD[: len(GOOD) - len(BODY) + part]) as connection:
        answer = read_answer(connection)
        assert (answer.status, answer.headers["connection"]) == (408, "close")
        assert answer.error == f"the body stalled after {part} bytes; send all of it at once"
        assert ended(connection) == b""
    until(lambda: hasty.log[-1].get("reason") == "stalled")


def test_a_body_that_is_too_large_is_refused_before_it_is_read(hasty):
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 700000\r\n"
    with hasty.raw(f"{head}\r\n".encode()) as connection:
        answer = read_answer(connection)
        assert (answer.status, answer.error) == (
            413,
            "the body has 700,000 bytes; this server takes at most 600,000 bytes (--max-body)",
        )
        assert "connection" not in answer.headers
        connection.sendall(bytes(700_000) + HEALTH)  # what was announced is read away, and the connection goes on
        assert read_answer(connection).json == {"ready": True}
    with hasty.raw(f"{head}Expect: 100-continue\r\n\r\n".encode()) as connection:
        assert read_answer(connection).headers["connection"] == "close"
        assert ended(connection) == b""


def test_a_client_that_goes_on_sending_what_was_refused_is_cut_off(hasty):
    with hasty.raw(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {10**15}\r\n\r\n".encode()) as connection:
        assert read_answer(connection).status == 413
        send_until_cut_off(connection, b"", bytes(10_000))


def test_chunked_bodies(hasty):
    def chunk(data: bytes) -> bytes:
        return f"{len(data):x}\r\n".encode() + data + b"\r\n"

    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
    good = f"{head}Inference-Header-Content-Length: {LENGTH}\r\n\r\n".encode()
    with hasty.raw(good + b"".join(chunk(BODY[i : i + 7]) for i in range(0, len(BODY), 7)) + chunk(b"")) as connection:
        assert read_answer(connection).status == 200
    with hasty.raw(good) as connection:
        send_until_cut_off(connection, b"", chunk(bytes(50_000)))
    told = "the body is larger; this server takes at most 600,000 bytes (--max-body)"
    until(lambda: hasty.log[-1].get("error") == told)
    with hasty.raw(good + b"zz\r\n") as connection:
        assert ended(connection).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\n\r\n",
        post(INFER, b"", "Content-Length: 5"),
        post(INFER, b"", "Transfer-Encoding: gzip"),
        post(INFER, b"").replace(b"Length: 0", b"Length: -1"),
        b"GET /v2 HTTP/1.1\r\nHost: x\r\nX-Huge: " + b"x" * 200_000 + b"\r\n\r\n",
        b"GET /" + b"x" * 200_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=["tls", "old", "no host", "two lengths", "encoding", "negative", "huge header", "huge path"],
)
def test_what_is_no_request_is_told(hasty, sent):
    with hasty.raw() as connection:
        with suppress(OSError):  # it is refused before all of it is sent
            connection.sendall(sent)
        answered = ended(connection)
    assert answered.startswith((b"HTTP/1.1 400", b"HTTP/1.1 501")), answered
    assert b"Traceback" not in answered


def test_a_body_that_ends_in_two_ways_ends_the_connection(server):
    """A proxy may believe the length: for it, the second request is the body of the first."""
    hidden = b"0\r\n\r\n" + HEALTH
    with server.raw(post(INFER, hidden, "Transfer-Encoding: chunked")) as connection:
        answer = read_answer(connection)
        assert (answer.status, answer.headers["connection"]) == (400, "close")
        assert answer.error == "the request has both Content-Length and Transfer-Encoding; send one of them"
        assert ended(connection) == b""


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("http://x/v2/health/ready", 200),
        ("HTTPS://x:80/v2/health/ready?a=b", 200),
        ("http://x", 404),
        ("/http://x/v2/health/ready", 404),
    ],
)
def test_a_proxy_may_send_a_whole_url(server, target, status):
    with server.raw(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode()) as connection:
        assert read_answer(connection).status == status


def test_pipelined_requests_are_answered_in_their_order(server, vae):
    with server.raw(HEALTH + GOOD + GOOD + HEALTH + GOOD) as connection:
        kinds = [read_answer(connection).headers["content-type"] for _ in range(5)]
    inferred, told = "application/octet-stream", "application/json"
    assert kinds == [told, inferred, inferred, told, inferred]


def test_a_client_that_does_not_take_its_answer_is_cut_off(vae):
    """An answer of 20 MB does not fit into the buffers between the two."""
    big, length = body_of(np.zeros((1, 2, 300, 300), np.float32))
    sent = post(INFER, big, f"Inference-Header-Content-Length: {length}")
    with serving({"tiny": vae}, patience=0.3) as server, server.raw(sent) as connection:
        until(lambda: bool(server.server.served.metrics.computed._counts))
        until(lambda: not server.server.server_state.connections)
        got = len(ended(connection))
    assert got < 20_000_000


def test_a_connection_too_many_is_told_and_closed(vae):
    with serving({"tiny": vae}, max_connections=3) as server, ExitStack() as stack:
        opened = [stack.enter_context(server.raw()) for _ in range(3)]
        until(lambda: len(server.server.server_state.connections) == 3)
        for _ in range(5):
            with server.raw(HEALTH) as connection:
                answer = read_answer(connection)
                assert (answer.status, answer.headers["retry-after"]) == (503, "1")
                assert answer.error == "too many connections are open; try again later"
        opened[0].sendall(HEALTH)
        assert read_answer(opened[0]).status == 200
        opened[1].close()
        until(lambda: len(server.server.server_state.connections) == 2)
        with server.raw(HEALTH) as connection:
            assert read_answer(connection).status == 200


class Gate:
    """Holds up the calls of a VAE until it is opened."""

    def __init__(self, vae: VAE, patch: pytest.MonkeyPatch) -> None:
        self.entered, self._open, self._compute = threading.Semaphore(0), threading.Event(), vae.compute
        patch.setattr(vae, "compute", self._held)

    def _held(self, *arguments: object) -> object:
        self.entered.release()
        assert self._open.wait(30)
        return self._compute(*arguments)

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def gate(vae: VAE, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(vae, monkeypatch)
    yield gate
    gate.open()


def calls_of(server: Serving) -> int:
    """How many calls run at once."""
    return server.server.served.line("tiny").calls


def waiting(server: Serving) -> int:
    return server.server.served.line("tiny").waiting


def test_a_client_that_goes_away_leaves_the_queue(vae, gate):
    with serving({"tiny": vae}, joins=True, max_delay=0.0) as server:
        calls = calls_of(server)
        with ExitStack() as stack:
            opened = []
            for _ in range(calls):  # one after another, so that none are joined
                opened.append(stack.enter_context(server.raw(GOOD)))
                assert gate.entered.acquire(timeout=30)
            with server.raw(GOOD):
                until(lambda: waiting(server) == 1)
            until(lambda: waiting(server) == 0)
            gate.open()
            assert [read_answer(connection).status for connection in opened] == [200] * calls
        until(lambda: [line.get("status") for line in server.log].count(499) == 1)
        assert [line["reason"] for line in server.log if line["status"] == 499] == ["gone"]


def test_a_full_queue_is_told_before_the_body_is_sent(vae, gate):
    with serving({"tiny": vae}, max_queue=1) as server, ExitStack() as stack:
        opened = [stack.enter_context(server.raw(GOOD)) for _ in range(calls_of(server) + 1)]
        until(lambda: waiting(server) == 1)
        with server.raw(GOOD[: -len(BODY)]) as connection:
            answer = read_answer(connection)
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert answer.error == "1 requests wait already; try again later"
        gate.open()
        assert {read_answer(connection).status for connection in opened} == {200}


def test_bodies_together_are_bounded(vae, gate):
    """Those of requests that wait are counted, and are forgotten when they are answered."""
    with serving({"tiny": vae}, max_body=1000) as server:
        held = post(INFER, BODY + bytes(4000 // 5 - len(BODY)))
        sent = held[: held.index(b"\r\n\r\n") + 4 + 799]
        assert len(sent) - sent.index(b"\r\n\r\n") - 4 == 799
        with ExitStack() as stack:
            opened = [stack.enter_context(server.raw(sent)) for _ in range(5)]
            until(lambda: server.server.served.held.bytes == 5 * 799)
            with server.raw(GOOD) as connection:
                answer = read_answer(connection)
            assert (answer.status, answer.error) == (
                503,
                "the bodies of other requests fill the memory for them; try again later",
            )
            for connection in opened:
                connection.sendall(b"x")
                assert read_answer(connection).status == 400
        until(lambda: server.server.served.held.bytes == 0)


def test_what_is_in_flight_when_the_server_stops_is_answered(vae, gate):
    with serving({"tiny": vae}, max_queue=30) as server, ExitStack() as stack:
        opened = [stack.enter_context(server.raw(GOOD)) for _ in range(24)]
        until(lambda: waiting(server) == 24 - calls_of(server))
        server.server.should_exit = True
        until(lambda: _refused(server.port))
        gate.open()
        assert [read_answer(connection).status for connection in opened] == [200] * 24


def _refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=30).close()
    except (ConnectionRefusedError, ConnectionResetError):  # closed before it connected, or while it did
        return True
    return False

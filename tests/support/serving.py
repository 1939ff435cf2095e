"""Servers in a thread of this process, on a port of their own, and connections to them."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tritonclient.http as triton

from vaedeploy.runtime import VAE
from vaedeploy.serve.app import App
from vaedeploy.serve.server import Server, run
from vaedeploy.serve.settings import Settings


@dataclass(frozen=True)
class Answered:
    """An answer of HTTP. Names of headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The sentence of a failure."""
        told = json.loads(self.body)
        assert list(told) == ["error"], told
        return told["error"]


@dataclass
class Serving:
    """A server that runs. said: its sentences. log: its access log, parsed."""

    server: Server
    port: int
    said: list[str]
    lines: list[str] = field(default_factory=list)
    ready: threading.Event = field(default_factory=threading.Event)

    def wait(self) -> None:
        """Until it is warm."""
        assert self.ready.wait(60), self.said

    @property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]

    def request(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Answered:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, dict(headers or {}))
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Answered(answer.status, found, answer.read())
        finally:
            connection.close()

    def infer(self, model: str, body: Any, header: object = None) -> Answered:
        """Send a body to a model, and with ``header`` the length of its JSON."""
        headers = {} if header is None else {"Inference-Header-Content-Length": str(header)}
        return self.request("POST", f"/v2/models/{model}/infer", body, headers)

    @contextmanager
    def raw(self, data: bytes = b"") -> Iterator[socket.socket]:
        """A connection to which ``data`` was sent."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            connection.sendall(data)
            yield connection

    @contextmanager
    def triton(self) -> Iterator[triton.InferenceServerClient]:
        with triton.InferenceServerClient(f"127.0.0.1:{self.port}", network_timeout=120) as client:
            yield client


@contextmanager
def serving(vaes: Mapping[str, VAE], *, wait: bool = True, **settings: Any) -> Iterator[Serving]:
    """A server of these VAEs, which is warm, or with ``wait`` False listens. Afterwards it has answered everything."""
    settings = {"port": 0, "warm_up": ((64, 64),), **settings}
    lines: list[str] = []
    said: list[str] = []
    ready = threading.Event()

    def say(sentence: str) -> None:
        said.append(sentence)
        if sentence.startswith("Ready"):
            ready.set()

    server = Server(App(vaes, Settings(**settings), lines.append), Settings(**settings), say)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        serving = Serving(server, listener.getsockname()[1], said, lines, ready)
        thread = threading.Thread(target=run, args=(server, listener))
        thread.start()
        try:
            if wait:
                serving.wait()
            else:
                until(lambda: server.started)
            yield serving
        finally:
            server.should_exit = True
            thread.join(60)
    assert not thread.is_alive()


def ask(
    client: triton.InferenceServerClient,
    model: str,
    array: np.ndarray,
    outputs: Mapping[str, bool] | None = None,
    *,
    in_bytes: bool = True,
    **options: Any,
) -> dict[str, np.ndarray]:
    """The outputs of a model for an array. outputs: name -> whether it is sent as bytes; None asks for none by name."""
    name = "latent" if model.endswith("decode") else "image"
    given = triton.InferInput(name, array.shape, triton.np_to_triton_dtype(array.dtype))
    given.set_data_from_numpy(array, binary_data=in_bytes)
    wanted = outputs and [triton.InferRequestedOutput(name, binary_data=binary) for name, binary in outputs.items()]
    result = client.infer(model, [given], outputs=wanted, **options)
    return {told["name"]: result.as_numpy(told["name"]) for told in result.get_response()["outputs"]}


def body_of(array: np.ndarray, name: str = "latent", **tensor: Any) -> tuple[bytes, int]:
    """A body with an array as bytes, and the length of its JSON."""
    datatype = {"float32": "FP32", "uint8": "UINT8"}[str(array.dtype)]
    told = {"name": name, "datatype": datatype, "shape": array.shape}
    told |= {"parameters": {"binary_data_size": array.nbytes}} | tensor
    text = json.dumps({"inputs": [told], "parameters": {"binary_data_output": True}}).encode()
    return text + array.tobytes(), len(text)


def post(path: str, body: bytes, *headers: str) -> bytes:
    """A request as it goes over the wire."""
    lines = (f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers)
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def until(true: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def read_answer(connection: socket.socket) -> Answered:
    """The next answer on a connection, and not a byte more."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = connection.recv(1)
        assert byte, head
        head += byte
    first, *lines = head.decode("latin-1").strip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = b""
    while len(body) < int(headers["content-length"]):
        data = connection.recv(int(headers["content-length"]) - len(body))
        assert data, body
        body += data
    return Answered(int(first.split()[1]), headers, body)

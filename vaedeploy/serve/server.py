"""Runs a server until SIGTERM: binds the port, opens and warms up the VAEs, and answers what is in flight."""

from __future__ import annotations

import asyncio
import errno
import math
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

import uvicorn

from vaedeploy.errors import BackendError, InputError, SizeError
from vaedeploy.runtime import VAE
from vaedeploy.serve.app import App
from vaedeploy.serve.connection import Connection
from vaedeploy.serve.http import address_text
from vaedeploy.serve.models import open_vaes
from vaedeploy.serve.settings import Settings
from vaedeploy.system.interrupts import SIGNALLED, SIGNALS, end_calls, stop_if_interrupted
from vaedeploy.system.oserrors import reason

KEEP_ALIVE = 75
"""Seconds that a connection stays open between two requests: longer than nginx's 60, or nginx might send a request on a
connection that is just being closed.
"""

WAITING = 1024
"""Connections that wait to be accepted."""

ACCEPTED_AT_ONCE = 16
"""Few of those: refusing one takes some turns of the event loop, and more are accepted meanwhile."""

SPARE_FILES = 256
"""File descriptors that are left to everything but served connections: bundles, libraries, and refused connections."""

USUAL_SIDE = 512
"""The side, in pixels, of the image that VAEs are warmed up with where no size is asked for."""

ENDS_CALLS = 0.1
"""Seconds between two checks, after a signal, of whether the warm-up has begun another call."""

Say = Callable[[str], None]


def serve(
    places: Sequence[str],
    settings: Settings,
    *,
    allow_unverified: bool = False,
    say: Say,
    write: Say,
    **options: Any,
) -> None:
    """Serve bundles until a signal asks to stop, and answer the requests that are in flight then.

    places: each ``BUNDLE`` or ``NAME=BUNDLE``. say: is told what happens, in sentences. write: is given the access log,
    a line of JSON for each request. options: those of ``VAE``, for each bundle.

    A second signal ends the process at once, with the exit code of that signal. Raises InputError for a port that
    cannot be listened on, what ``open_vaes`` and ``VAE.warm_up`` raise, and, for a signal before the bundles are open,
    ``Stopped``.
    """
    with _listening(settings) as listener, ExitStack() as opened:
        vaes = open_vaes(places, allow_unverified=allow_unverified, **options)
        for vae in vaes.values():
            opened.callback(vae.close)
        for name, vae in vaes.items():
            for height, width in settings.warm_up:
                _check_size(name, vae, height, width)
            say(f"{name} is bundle {vae.path}, {vae.precision}, on {vae.backend}")
        stop_if_interrupted()
        server = Server(App(vaes, settings, write), settings, say)
        with server.capture_signals(), opened.pop_all():
            run(server, listener)


def _check_size(name: str, vae: VAE, height: int, width: int) -> None:
    try:
        vae.latent.sizes.check(height, width)
    except SizeError as error:
        raise InputError(
            f"{name} cannot be warmed up at {height}x{width} (height x width): both must be multiples of "
            f"{vae.latent.factor}, and at least that. Give another --warm-up"
        ) from error


def run(server: Server, listener: socket.socket) -> None:
    """Serve on a bound socket until ``server`` is to stop; see ``serve``."""
    place = address_text(*listener.getsockname()[:2])
    server.say(f"Listening on http://{place} for {', '.join(server.served.models)}")

    async def main() -> None:
        warming = asyncio.get_running_loop().create_task(_warm_up(server))
        await server.serve([listener])
        while not warming.done():
            end_calls()
            await asyncio.wait({warming}, timeout=ENDS_CALLS)
        await warming  # raises what warming up raised

    try:
        asyncio.run(main())
    finally:
        server.served.close()
    if server.stopped_by:
        server.say(f"Stopped by {server.stopped_by}; every request was answered")


async def _warm_up(server: Server) -> None:
    """Run each VAE once at every size, and let the server say that it is ready; where that fails, stop it."""
    loop, app = asyncio.get_running_loop(), server.served
    began = loop.time()
    try:
        for name, vae in app.vaes.items():
            given = app.settings.warm_up or (vae.latent.sizes.padded(USUAL_SIDE, USUAL_SIDE),)
            # On a CPU, ONNX Runtime plans one memory block per size in the first run, and finds the plan by XOR of the
            # sides: all squares share the plan of the first square.
            sizes = sorted(given, key=math.prod, reverse=True)
            server.say(f"Warming up {name} at {', '.join(f'{height}x{width}' for height, width in sizes)}")
            for batch in app.line(name).batches:
                for size in sizes:
                    if server.should_exit:
                        return
                    await asyncio.to_thread(vae.warm_up, [size], batch=batch)
        app.ready = True
    except BackendError:
        if not server.should_exit:
            raise
        return  # the call was ended
    finally:
        server.should_exit = server.should_exit or not app.ready
    server.say(f"Ready after {loop.time() - began:.1f} s")


class Server(uvicorn.Server):
    """uvicorn, which stops after what is in flight. A second signal ends the process at once.

    served: the application. say: see ``serve``. stopped_by: the name of the signal, once one came.
    """

    def __init__(self, app: App, settings: Settings, say: Say) -> None:
        connection = type(
            "Connection", (Connection,), {"patience": settings.patience, "most": _most_connections(settings)}
        )
        super().__init__(
            uvicorn.Config(
                app,
                http=connection,
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                access_log=False,
                server_header=False,
                backlog=ACCEPTED_AT_ONCE,
                timeout_keep_alive=KEEP_ALIVE,
            )
        )
        self.served, self.say = app, say
        self.stopped_by = ""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or []:
            listener.listen(WAITING)  # asyncio has taken ACCEPTED_AT_ONCE for this number too

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, for every signal that asks to stop. It does not raise them again: the server did as asked.

        uvicorn enters it while it serves. ``serve`` enters it around that, since what follows takes time too: calls
        whose clients have gone, and the end of the warm-up.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in SIGNALS}
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, self.handle_exit)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.stopped_by:
            try:
                name = signal.Signals(sig).name
                self.say(f"Stopped at once by {name}, the second signal; requests that were not answered are lost")
            finally:
                # Any other exit waits for threads, and each may be in a call of minutes.
                os._exit(SIGNALLED + sig)
        self.should_exit = True
        self.stopped_by = signal.Signals(sig).name


def _most_connections(settings: Settings) -> int:
    if settings.max_connections is not None:
        return settings.max_connections
    try:
        import resource
    except ModuleNotFoundError:  # Windows has no such limit
        return 10_000
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 10_000 if files == resource.RLIM_INFINITY else max(files - SPARE_FILES, files // 4)


@contextmanager
def _listening(settings: Settings) -> Iterator[socket.socket]:
    """Context with a listening socket: clients that connect wait until the server runs. Raises InputError."""
    host, port = settings.host, settings.port
    try:
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        why = reason(error) if isinstance(error, OSError) else "no host has such a name"
        raise InputError(f"cannot listen on {host!r}: {why}. Give an address of this machine with --host") from error
    with listener:
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(WAITING)  # two sockets may be bound to one port, and only one may listen
        except OSError as error:
            raise InputError(f"cannot listen on port {port} of {host}: {_why(error)}") from error
        yield listener


def _why(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "another program does. Choose another port with --port, or 0 for any that is free"
    if error.errno == errno.EACCES:
        return "that port needs rights that this process does not have. Choose one above 1023 with --port"
    return f"{reason(error)}. Give an address of this machine with --host"

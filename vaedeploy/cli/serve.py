"""The command that puts bundles behind a port."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import click

from vaedeploy.cli import terminal
from vaedeploy.cli.group import cli
from vaedeploy.cli.options import computing_options, memory_option
from vaedeploy.cli.parameters import MemorySize, Size, check_no_image
from vaedeploy.errors import OutputError
from vaedeploy.system.interrupts import Stopped

OPENING = ("allow_unverified", "backend", "precision", "threads", "max_memory", "keep_memory", "identity")
"""The options that say how bundles are opened; the others are the server's."""


@cli.command()
@click.argument("bundles", nargs=-1, required=True, metavar="[NAME=]BUNDLE...")
@click.option("--host", default="127.0.0.1", show_default=True, metavar="H", help="The address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    metavar="N",
    help="The port to listen on; 0 takes a free one.",
)
@click.option(
    "--warm-up",
    type=Size(),
    multiple=True,
    metavar="HxW",
    help="Run each VAE at this height and width, in pixels, before the server says that it is ready. Repeatable. "
    "[default: 512x512]",
)
@click.option(
    "--max-batch",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    metavar="N",
    help="Take at most this many images in a request, and join requests of one size up to this many on a GPU.",
)
@click.option(
    "--max-delay",
    type=click.FloatRange(min=0),
    default=2.0,
    show_default=True,
    metavar="MS",
    help="On a GPU, wait this many milliseconds at most for requests to join.",
)
@click.option(
    "--max-queue",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    metavar="N",
    help="Let this many requests wait for each VAE; further ones are refused (503).",
)
@click.option(
    "--max-body",
    type=MemorySize(),
    default="256MiB",
    show_default=True,
    metavar="SIZE",
    help="Take and give at most this much in a request and its answer.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="Use this many threads for a call on the CPU. 1 gives many clients the most images per second, and a client "
    "that is alone waits longer. [default: all cores]",
)
@computing_options
@memory_option
@click.option(
    "--keep-memory",
    is_flag=True,
    help="Keep the memory that the largest call took: later calls on the CPU take a few per cent less time.",
)
@click.option("--allow-unverified", is_flag=True, help="Also serve bundles that are not verified.")
@click.option(
    "--identity",
    metavar="HEX",
    help="Fail unless the VAE of the only bundle has this identity, which inspect shows.",
)
def serve(bundles: tuple[str, ...], max_delay: float, warm_up: Any, **options: Any) -> None:
    """Serve bundles over HTTP.

    Each bundle is two models of the Open Inference Protocol (KServe v2), NAME-encode and NAME-decode, for clients such
    as tritonclient. NAME is what the bundle calls its VAE, unless another is given. /v1/encode and /v1/decode take and
    give files, for curl. On a CPU small requests are computed side by side, and large ones in turns; on a GPU those of
    one size are joined.

    The server has no authentication. It listens on this machine only, unless --host says otherwise, and then belongs
    behind a proxy. It writes a line of JSON for each request to stdout. SIGTERM and Ctrl-C stop it after what is in
    flight, with exit code 0, also while it loads and warms up; a second one ends it at once, with 143 or 130.

    \b
    Example:
      vaedeploy serve mse840k
      vaedeploy serve small=sdxl-fp16 flux1-dev --host 0.0.0.0 --port 8080 --warm-up 1024x1024
      curl -f --data-binary @photo.png "http://127.0.0.1:8000/v1/encode?pad=true" -o photo.safetensors
    """
    if options["identity"] is not None and len(bundles) > 1:
        raise click.UsageError(f"--identity is that of one VAE, and {len(bundles)} bundles are given. Give one bundle.")
    for given in bundles:
        for place in (given, given.partition("=")[2]):
            check_no_image(Path(place))
    try:
        from vaedeploy.serve.server import serve as run
        from vaedeploy.serve.settings import Settings

        opening = {name: options.pop(name) for name in OPENING}
        settings = Settings(warm_up=warm_up, max_delay=max_delay / 1000, **options)
        run(bundles, settings, **opening, say=terminal.say, write=_AccessLog())
    except Stopped as stop:  # later signals are the server's own
        terminal.say(f"Stopped by {signal.Signals(stop.number).name} before a bundle was served")


class _AccessLog:
    """Writes lines to stdout until that fails, as on a full disk: the server goes on without its log then."""

    def __init__(self) -> None:
        self._works = sys.stdout is not None

    def __call__(self, line: str) -> None:
        if self._works:
            try:
                terminal.show(line)
            except OutputError as error:
                self._works = False
                terminal.say(f"Warning: {error}; requests are no longer logged")

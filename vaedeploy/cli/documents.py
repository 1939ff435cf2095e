"""What ``--json`` prints for commands that make bundles, and for those that convert files."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vaedeploy.cli import terminal
from vaedeploy.errors import BuildError, VerificationError

if TYPE_CHECKING:
    from vaedeploy.bundle import Bundle
    from vaedeploy.pipeline.codec import Converted
    from vaedeploy.runtime import VAE


@dataclass
class Made:
    """What a command made: the bundle, and further fields of its document."""

    bundle: Bundle | None = None
    more: dict[str, Any] = field(default_factory=dict)


@contextmanager
def telling_bundle(as_json: bool) -> Iterator[Made]:
    """Context of the work that makes ``Made.bundle``. At its end the bundle's document is printed, if ``as_json``.

    It is that of ``inspect --json`` without ``memory``, with ``seconds``, the time that the work took, and ``error``:
    null, or why a bundle that exists is not all that was asked for. The error itself goes on to stderr and the exit
    code.
    """
    made, begun = Made(), time.monotonic()
    problem: BuildError | VerificationError | None = None
    try:
        yield made
    except (BuildError, VerificationError) as error:
        made.bundle, problem = error.bundle, error
        raise
    finally:
        if as_json and made.bundle is not None:
            from vaedeploy.cli.tables.bundles import bundle_document

            told = {"seconds": time.monotonic() - begun, "error": None if problem is None else str(problem)}
            terminal.show_json(bundle_document(made.bundle, checked=False) | told | made.more)


def converted_document(vae: VAE, converted: Converted) -> dict[str, Any]:
    """What ``encode`` and ``decode`` wrote, and by which VAE, as builtins."""
    from vaedeploy.bundle import file_info

    files = []
    for file in converted.files:
        info = file_info(file.written)
        files.append(
            {
                "source": str(file.source),
                "written": str(file.written),
                "sha256": info.sha256,
                "bytes": info.bytes,
                "seconds": file.seconds,
            }
        )
    return {
        "bundle": str(vae.path),
        "vae": vae.manifest.vae.name,
        "identity": vae.manifest.vae.identity,
        "backend": vae.backend,
        "files": files,
        "failures": list(converted.failures),
    }

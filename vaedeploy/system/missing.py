"""What a message says of a path that is not there: the nearest name beside it, that it is an address, or why the system
does not let anybody look.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from vaedeploy.system.oserrors import reason

ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):/+(.+)", re.IGNORECASE)
"""An address, such as https://example.com/a.png, of whose two slashes Path keeps one."""

CUTOFF = 0.75
"""The least likeness of a name that is told, so that two.png is not told for one.png."""

MOST_NAMES = 10_000
"""The most names of a folder that are compared: a hundred thousand take seconds."""


def missing(what: str, path: str | Path, fits: Callable[[Path], bool] = lambda near: True) -> str:
    """The message, without its full stop, that there is no ``what`` at ``path``.

    It names the nearest of the names beside ``path`` for which ``fits`` is true, if one is near.
    """
    if address := ADDRESS.fullmatch(str(path)):
        return f"{address[1]}://{address[2]} is an address, and vaedeploy reads files; download it first"
    if refused := _refused(Path(path)):
        return refused
    near = next(filter(fits, _near(Path(path))), None)
    return f"there is no {what} {path}" + (f"; the nearest is {near}" if near is not None else "")


def _refused(path: Path) -> str | None:
    """The message for a path at which the system does not let anybody look, and for a link that leads nowhere."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return f"{path} is a link to {path.readlink()}, where nothing is" if path.is_symlink() else None
    except OSError as error:
        return f"{path} cannot be read: {reason(error)}"
    except ValueError:  # a path with a null character
        return None
    return None


def _near(path: Path) -> list[Path]:
    """The paths beside ``path`` with the most similar names, the most similar one first; hidden ones are left out."""
    try:
        names = [place.name for place in islice(path.parent.iterdir(), MOST_NAMES) if not place.name.startswith(".")]
    except (OSError, ValueError):  # ValueError: a path with a null character
        return []
    lowered = {name.lower(): name for name in names}
    return [path.parent / lowered[name] for name in difflib.get_close_matches(path.name.lower(), lowered, 5, CUTOFF)]

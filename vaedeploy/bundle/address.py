"""Addresses of bundles in hub repositories, and where their copies are in the cache."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from vaedeploy.errors import InputError, OutputError
from vaedeploy.system import hub
from vaedeploy.system.cache import cache_place
from vaedeploy.system.places import resolved

SCHEME = "hf://"

COMMIT = re.compile(r"[0-9a-f]{40}")

PULLED_AGAIN = "It is the cache's copy of a bundle on the hub: remove the folder, and it is pulled again"
"""What to do about a damaged bundle that ``is_cached``."""


@dataclass(frozen=True)
class Address:
    """A hub repository, owner/name, and its branch, tag or commit. None for its main branch."""

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{SCHEME}{self.repository}" + (f"@{self.revision}" if self.revision else "")


def is_address(bundle: object) -> bool:
    """Whether a bundle is named by an address, and not by its folder."""
    return isinstance(bundle, str) and bundle.startswith(SCHEME)


def parse_address(given: str) -> Address:
    """The address that ``owner/name``, ``owner/name@revision`` or either after ``hf://`` is. Raises InputError."""
    match = hub.REPOSITORY_NAME.fullmatch(given.removeprefix(SCHEME))
    if match is None:
        raise InputError(
            f"{given!r} names no hub repository; write owner/name or owner/name@revision, where the revision is a "
            "branch, a tag or a commit"
        )
    return Address(match["name"], match["revision"])


def fetch_again(place: Path | str) -> str:
    """What to do about a damaged bundle at ``place`` that was exported elsewhere: a sentence without its full stop."""
    command = f"vaedeploy pull OWNER/NAME --out {shlex.quote(str(place))} --force"
    return f"If it came from elsewhere, copy it from there again; where that is the hub, run: {command}"


def copy_place(repository: str, commit: str) -> Path:
    """Where the copy of a commit is. Its last name is the repository's, as people know the bundle."""
    return _copies() / repository / commit / repository.split("/")[1]


def is_cached(folder: Path) -> bool:
    """Whether a bundle's folder is a copy in the cache, which nothing may change."""
    try:
        copies = _copies()
    except OutputError:  # there is no cache
        return False
    return resolved(folder).is_relative_to(resolved(copies))


def _copies() -> Path:
    return cache_place("bundles")

"""Arguments that are easily given in another form than the one that is meant."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike
from typing import TypeVar

from vaedeploy.errors import InputError

T = TypeVar("T")


def as_list(what: str, given: Iterable[T]) -> list[T]:
    """``given`` as a list. Raises InputError, naming ``what``, for one string or path, whose letters would be taken for
    items, and for anything else that cannot be gone through.
    """
    if isinstance(given, str | bytes | PathLike):
        kind = "a path" if isinstance(given, PathLike) else "a string"
        raise InputError(f"{what} is {kind}; give a list: [{given!r}]")
    if not isinstance(given, Iterable):
        raise InputError(f"{what} is {given!r}; give a list")
    return list(given)

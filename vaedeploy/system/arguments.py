"""Checks of arguments that callers easily give in the wrong form, such as one string for a list of strings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import TypeVar

from vaedeploy.errors import InputError
from vaedeploy.system.places import resolved

T = TypeVar("T")


def as_list(what: str, given: Iterable[T]) -> list[T]:
    """``given`` as a list.

    Raises InputError, which calls the argument ``what``, for a single string or path (iterating over a string would
    give its letters) and for anything that is not iterable.
    """
    if isinstance(given, str | bytes | PathLike):
        kind = "a path" if isinstance(given, PathLike) else "a string"
        raise InputError(f"{what} is {kind}; give a list: [{given!r}]")
    if not isinstance(given, Iterable):
        raise InputError(f"{what} is {given!r}; give a list")
    return list(given)


def refuse_repeats(what: str, paths: Sequence[Path]) -> None:
    """Raise InputError, which calls each path a ``what``, where two lead to the same place."""
    places = [resolved(path) for path in paths]
    for path, place in zip(paths, places, strict=True):
        if places.count(place) > 1:
            raise InputError(f"{what} {path} was given twice; give {what}s that differ")

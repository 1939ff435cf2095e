"""Which type of file a client accepts."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus

from vaedeploy.serve.refusals import RequestError
from vaedeploy.system.text import shown


def choose(accept: str | None, kinds: Sequence[str]) -> str:
    """The one of ``kinds`` with the highest weight in the header ``Accept``; of equal ones, the first.

    A browser's header, which accepts ``image/*`` and everything, gives the first. Raises RequestError (406) if it
    accepts none.
    """
    if not accept or not accept.strip():
        return kinds[0]
    ranges = [_range(item) for item in accept.split(",") if item.strip()]
    weights = {kind: _weight(kind, ranges) for kind in kinds}
    best = max(kinds, key=lambda kind: weights[kind])  # the first of the greatest
    if weights[best] == 0:
        raise RequestError(
            HTTPStatus.NOT_ACCEPTABLE,
            f"Accept is '{shown(accept)}'; this answer can be {', '.join(kinds)}",
        )
    return best


def _range(item: str) -> tuple[str, float]:
    """A range of types, such as ``image/*``, and its weight, 0 to 1."""
    kind, *parameters = (part.strip().lower() for part in item.split(";"))
    weight = next((text[2:] for text in parameters if text.startswith("q=")), "1")
    try:
        number = float(weight)
    except ValueError:
        number = 0.0
    return kind, number if 0 <= number <= 1 else 0.0


def _weight(kind: str, ranges: Sequence[tuple[str, float]]) -> float:
    """The weight of the range that fits best: the type itself, its family, or everything, which Java writes ``*``."""
    family = f"{kind.partition('/')[0]}/*"
    for wanted in ((kind,), (family,), ("*/*", "*")):
        found = [weight for name, weight in ranges if name in wanted]
        if found:
            return max(found)
    return 0.0

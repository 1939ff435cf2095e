"""What a rule did to a graph: how often it matched, and where it did not and why."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Outcome", "Refusal"]


@dataclass(frozen=True)
class Refusal:
    """A place that a rule is about and left alone.

    node: the name of the node that it looked at. reason: a sentence without a full stop.
    """

    node: str
    reason: str


@dataclass(frozen=True)
class Outcome:
    """What one rule did: ``matches`` places were rewritten, ``refusals`` were left alone."""

    rule: str
    matches: int
    refusals: tuple[Refusal, ...] = ()

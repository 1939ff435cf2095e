"""What a rule did to a graph: how many places it rewrote, and which it left alone and why."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Outcome", "Refusal"]


@dataclass(frozen=True)
class Refusal:
    """A place that a rule looked at and left alone.

    node: the name of the node there. reason: a sentence without a full stop.
    """

    node: str
    reason: str


@dataclass(frozen=True)
class Outcome:
    """What one rule did: it rewrote ``matches`` places and left those in ``refusals`` alone."""

    rule: str
    matches: int
    refusals: tuple[Refusal, ...] = ()

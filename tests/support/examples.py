"""How many examples a property gets that takes longer than others."""

from __future__ import annotations

from hypothesis import settings


def at_most(examples: int) -> settings:
    """``examples`` in the profile for CI, whose default is 100; as many times more in another profile as that has."""
    return settings(max_examples=examples * settings().max_examples // 100)

"""Solves linear relations between integer unknowns, and chooses values for those that stay free.

A quantity q is stored as q * 2^e(q). Each relation sum(k_i * e(q_i)) = 0 is solved for one unknown, so that every e(q)
stays an integer combination of free unknowns, its form:

    e(q) = sum(c_j * g_j),   g_j any integer.

Exponents are chosen within bounds lower <= e(q) <= upper, starting with all g_j = 0 and moving a g_j only where a bound
requires it. Plain components (all c_j are zero but one, which is 1) then have e = min(0, upper).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Bounds", "Choice", "Exponents", "Form"]

Form = tuple[tuple[int, int], ...]
"""Pairs (free unknown, factor), sorted; () for an exponent that is fixed at zero."""

FARTHEST = 1000
"""The largest magnitude of a free unknown: contradictory bounds would push it for ever."""

SPARE_BINADES = 13
"""How many powers of two an exponent may go below its upper bound to leave a weight as it is.

With fp16's limit and a headroom of 2^3, the largest number is then 1, and what fp16's subnormals lose (2^-25) is far
below what rounding loses (2^-12).
"""


@dataclass(frozen=True)
class Bounds:
    """Bounds of one exponent. ``upper`` is exceeded where it cannot be met; no exponent goes below ``lower``."""

    lower: float = -math.inf
    upper: float = math.inf


@dataclass(frozen=True)
class Choice:
    """The chosen values.

    free: value of each free unknown that is not zero. blocked: each form whose upper bound nothing could meet, and the
    key whose lower bound stood in the way, or None where none did.
    """

    free: Mapping[int, int]
    blocked: Mapping[Form, Hashable | None]

    def value(self, form: Form) -> int:
        """The exponent of a key that has this form."""
        return sum(factor * self.free.get(unknown, 0) for unknown, factor in form)


class Exponents:
    """Exponents by key, and the relations between them. A key that no call has named has no exponent.

    follows: whether a relation should be solved for a key's exponent, so that others stay free to be chosen.
    """

    def __init__(self, follows: Callable[[Hashable], bool] = lambda _: False) -> None:
        self._follows = follows
        self._forms: dict[Hashable, dict[int, int]] = {}
        self._users: dict[int, set[Hashable]] = {}
        self._followers: set[int] = set()
        self._count = 0
        self.fixed_by: dict[Hashable, str] = {}
        """Key -> the ``why`` of the relation that fixed its exponent at zero."""

    def __contains__(self, key: Hashable) -> bool:
        return key in self._forms

    def form(self, key: Hashable) -> Form:
        """``key``'s exponent as a combination of free unknowns."""
        return tuple(sorted(self._form(key).items()))

    def fix(self, key: Hashable, why: str) -> None:
        """Require e(key) = 0."""
        self.relate([(key, 1)], why)

    def relate(self, terms: Iterable[tuple[Hashable, int]], why: str) -> None:
        """Require sum(factor * e(key)) = 0. Where no unknown can be solved for in integers, all in it become zero."""
        total: dict[int, int] = defaultdict(int)
        for key, factor in terms:
            for unknown, multiple in self._form(key).items():
                total[unknown] += factor * multiple
        total = {unknown: factor for unknown, factor in total.items() if factor}
        if not total:
            return
        divisor = math.gcd(*total.values())
        solvable = [unknown for unknown, factor in total.items() if abs(factor) == divisor]
        if not solvable:
            for unknown in total:
                self._replace(unknown, {}, why)
            return
        eliminated = min(solvable, key=lambda unknown: (unknown not in self._followers, len(self._users[unknown])))
        scale = -total.pop(eliminated)  # ± divisor
        self._replace(eliminated, {unknown: factor // scale for unknown, factor in total.items()}, why)

    def choose(self, bounds: Mapping[Hashable, Bounds], untouched: Sequence[Hashable] = ()) -> Choice:
        """Choose values within ``bounds``; where it costs nothing, the keys in ``untouched`` get zero."""
        solver = _Solver({key: (self.form(key), bound) for key, bound in bounds.items()})
        return solver.solve([self.form(key) for key in untouched])

    def _form(self, key: Hashable) -> dict[int, int]:
        if key not in self._forms:
            self._forms[key] = {self._count: 1}
            self._users[self._count] = {key}
            if self._follows(key):
                self._followers.add(self._count)
            self._count += 1
        return self._forms[key]

    def _replace(self, eliminated: int, replacement: Mapping[int, int], why: str) -> None:
        """Write the combination ``replacement`` for the unknown ``eliminated`` in every form."""
        for key in self._users.pop(eliminated):
            form = self._forms[key]
            multiple = form.pop(eliminated)
            for unknown, factor in replacement.items():
                form[unknown] = form.get(unknown, 0) + multiple * factor
                if form[unknown]:
                    self._users[unknown].add(key)
                else:
                    del form[unknown]
                    self._users[unknown].discard(key)
            if not form:
                self.fixed_by.setdefault(key, why)


class _Solver:
    """Chooses the free unknowns. Of keys with the same form, the tightest bounds count."""

    def __init__(self, bounds: Mapping[Hashable, tuple[Form, Bounds]]) -> None:
        self.upper: dict[Form, float] = {}
        self.lower: dict[Form, tuple[float, Hashable]] = {}
        self.readers: dict[int, set[Form]] = defaultdict(set)
        for key, (form, bound) in bounds.items():
            if not form:
                continue
            if bound.upper < math.inf:
                self.upper[form] = min(bound.upper, self.upper.get(form, math.inf))
            if bound.lower > -math.inf:
                self.lower[form] = max((bound.lower, key), self.lower.get(form, (-math.inf, None)), key=lambda b: b[0])
            for unknown, _ in form:
                self.readers[unknown].add(form)
        self.blocked: dict[Form, Hashable | None] = {}

    def solve(self, untouched: Sequence[Form]) -> Choice:
        free = None
        while free is None:  # each failed attempt gives up one more upper bound
            free = self._relax()
        self._settle(free, untouched)
        return Choice({unknown: value for unknown, value in free.items() if value}, self.blocked)

    def _relax(self) -> dict[int, int] | None:
        """Move unknowns, each in one direction only, until every upper bound that is not given up is met."""
        free: dict[int, int] = defaultdict(int)
        while (form := self._exceeded(free)) is not None:
            excess = int(_value(form, free) - self.upper[form])
            moves = [(unknown, -math.copysign(-(-excess // abs(factor)), factor)) for unknown, factor in form]
            obstacle = None
            allowed = []
            for unknown, change in moves:
                if free[unknown] * change < 0 or abs(free[unknown] + change) > FARTHEST:
                    continue
                blocker = self._too_low(free, unknown, int(change))
                if blocker is None:
                    allowed.append((unknown, int(change)))
                obstacle = obstacle or blocker
            if not allowed:
                self.blocked[form] = obstacle
                return None
            # Moves down come first, then the unknown whose tensors have the largest numbers.
            unknown, change = min(allowed, key=lambda m: (m[1] > 0, self.upper.get(((m[0], 1),), 0) - free[m[0]]))
            free[unknown] += change
        return free

    def _exceeded(self, free: Mapping[int, int]) -> Form | None:
        """A form above its upper bound, unless that is given up; None where there is none."""
        for form, upper in self.upper.items():
            if form not in self.blocked and _value(form, free) > upper:
                return form
        return None

    def _too_low(self, free: Mapping[int, int], unknown: int, change: int) -> Hashable | None:
        """A key that ``change`` would push below its lower bound; None where there is none."""
        for form in self.readers[unknown] & self.lower.keys():
            lower, key = self.lower[form]
            before = _value(form, free)
            after = before + change * dict(form)[unknown]
            if after < lower and after < before:
                return key
        return None

    def _settle(self, free: dict[int, int], untouched: Sequence[Form]) -> None:
        """Lower unknowns that have room to go down, where that leaves more of ``untouched`` at zero."""
        users: dict[int, list[Form]] = defaultdict(list)
        for form in untouched:
            for unknown, _ in form:
                users[unknown].append(form)
        for form in untouched:
            for unknown, factor in form:
                value = _value(form, free)
                if value * factor <= 0 or abs(factor) != 1:
                    continue
                moved = {**free, unknown: free[unknown] - abs(value)}
                fewer = _touched(users[unknown], moved) < _touched(users[unknown], free)
                room = self.upper.get(((unknown, 1),), 0) - moved[unknown]
                if fewer and room <= SPARE_BINADES and self._within(moved, unknown):
                    free[unknown] = moved[unknown]

    def _within(self, free: Mapping[int, int], unknown: int) -> bool:
        for form in self.readers[unknown]:
            value = _value(form, free)
            if form not in self.blocked and value > self.upper.get(form, math.inf):
                return False
            if form in self.lower and value < self.lower[form][0]:
                return False
        return True


def _value(form: Form, free: Mapping[int, int]) -> int:
    return sum(factor * free.get(unknown, 0) for unknown, factor in form)


def _touched(forms: Iterable[Form], free: Mapping[int, int]) -> int:
    return sum(_value(form, free) != 0 for form in forms)

"""Exponents that are solved for: relations between them, and bounds."""

from __future__ import annotations

from vaedeploy.rewrite.rescale.exponents import Bounds, Exponents


def test_relations_without_an_integer_solution_fix_their_unknowns() -> None:
    exponents = Exponents()
    exponents.relate([("a", 2), ("b", 3)], "why not")
    assert (exponents.form("a"), exponents.form("b")) == ((), ())
    assert exponents.fixed_by == {"a": "why not", "b": "why not"}


def test_parity() -> None:
    """2 e(root) = e(square): an odd bound on the square costs one bit more."""
    exponents = Exponents()
    exponents.relate([("root", 2), ("square", -1)], "Sqrt")
    choice = exponents.choose({"square": Bounds(upper=-5)})
    assert [choice.value(exponents.form(key)) for key in ("root", "square")] == [-3, -6]


def test_what_follows_is_solved_for() -> None:
    """Of the two weights and two results that share one relation too many, the weights give way."""
    exponents = Exponents(follows=lambda key: str(key).startswith("weight"))
    for side in "ab":
        exponents.relate([(f"result {side}", 1), (f"tensor {side}", -1), (f"weight {side}", -1)], "Mul")
    exponents.relate([("result a", 1), ("result b", 1)], "MatMul, Softmax")
    for side in "ab":
        choice = exponents.choose({f"tensor {side}": Bounds(upper=-5)})
        assert [choice.value(exponents.form(f"result {other}")) for other in "ab"] == [0, 0]
        assert choice.value(exponents.form(f"weight {side}")) == 5


def test_bounds_that_contradict_each_other_are_given_up() -> None:
    exponents = Exponents()
    exponents.relate([("sum", 1), ("a", -1), ("b", 1)], "Div")
    exponents.relate([("back", 1), ("b", -1), ("a", 1)], "Div")
    choice = exponents.choose({"sum": Bounds(upper=-1), "back": Bounds(upper=-1)})
    values = [choice.value(exponents.form(key)) for key in ("sum", "back")]
    assert sorted(values) == [-1, 1]
    assert list(choice.blocked) == [exponents.form("sum" if values[0] > 0 else "back")]

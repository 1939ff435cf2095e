"""Which worker makes which shard."""

from __future__ import annotations

from vaedeploy.pipeline.cache.plan import Shard
from vaedeploy.pipeline.cache.turns import Turns


def shard(name: str) -> Shard:
    return Shard(name, (16, 16), ())


def names(given: tuple[Shard, Shard | None]) -> tuple[str, str | None]:
    first, following = given
    return first.name, None if following is None else following.name


def test_a_worker_is_given_what_it_was_told_would_follow() -> None:
    turns = Turns(map(shard, "abcdef"))
    assert names(turns.take("x")) == ("a", "b")
    assert names(turns.take("y")) == ("c", "d")
    assert names(turns.take("x")) == ("b", "e")
    assert names(turns.take("x")) == ("e", "f")
    assert names(turns.take("y")) == ("d", None)
    assert len(turns) == 1


def test_no_worker_is_idle_while_another_has_one_put_aside() -> None:
    turns = Turns(map(shard, "abc"))
    assert names(turns.take("x")) == ("a", "b")
    assert names(turns.take("y")) == ("c", None)
    assert names(turns.take("y")) == ("b", None)
    assert not turns


def test_what_a_dead_worker_had_goes_to_others() -> None:
    turns = Turns(map(shard, "abcd"))
    turns.take("x")
    turns.give_back("x", shard("a"))
    assert len(turns) == 4
    assert names(turns.take("y")) == ("a", "b")
    turns.take("z")
    turns.give_back("z", shard("c"))
    assert names(turns.take("y")) == ("b", "c")
    assert names(turns.take("y")) == ("c", "d")

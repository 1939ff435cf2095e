"""What strangers' text may send to a terminal."""

from __future__ import annotations

import pytest

from vaedeploy.system.text import encodable, printable, whole_number


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ü 絵 \t\n", "plain ü 絵 \t\n"),
        ("\x1b[31mred\x1b]0;title\x07", "\\x1b[31mred\\x1b]0;title\\x07"),
        ("over\rwritten\x9b2J\x7f\0", "over\\x0dwritten\\x9b2J\\x7f\\x00"),
        ("gpj\u202egnp.exe", "gpj\\u202egnp.exe"),
        ("\udcff\ud800", "\\xff\\ud800"),
    ],
)
def test_what_a_terminal_obeys_is_shown(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_only_what_utf8_lacks_is_replaced() -> None:
    assert encodable("\x1b\udcffü") == "\x1b\\xffü"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("0512", 512),
        (str(2**63), 2**63),
        ("", None),
        ("-1", None),
        ("1.5", None),
        ("٣", None),
        ("9" * 20, None),
        ("9" * 5000, None),
    ],
)
def test_digits_are_a_number_unless_there_are_too_many(text: str, number: int | None) -> None:
    assert whole_number(text) == number

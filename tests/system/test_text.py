"""What strangers' text may send to a terminal."""

from __future__ import annotations

import pytest

from vaedeploy.system.text import encodable, printable


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

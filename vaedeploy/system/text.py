"""Text from strangers, such as names of files and licences, as a terminal and UTF-8 can take it."""

from __future__ import annotations

import re

NOT_UTF8 = re.compile("[\ud800-\udfff]")
"""Surrogates: Python's stand-ins for bytes of file names that are not UTF-8."""

NOT_PRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What a terminal obeys instead of showing (control characters other than tab and line feed, and marks that change the
direction of writing), and what is not UTF-8.
"""

LONGEST = 200
"""Length of a text, in characters, from which a message shortens it."""

MOST_DIGITS = 19
"""The digits of the largest 64-bit integer."""


def encodable(text: str) -> str:
    r"""``text``, with what is not UTF-8 escaped as in Python: ``\xff``."""
    return NOT_UTF8.sub(_escaped, text)


def printable(text: str) -> str:
    r"""``text``, with what a terminal would obey or cannot show escaped as in Python: ``\x1b``."""
    return NOT_PRINTABLE.sub(_escaped, text)


def shown(text: str) -> str:
    """A text from a file as a message shows it: not too long, and without what would steer a terminal."""
    cut = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def whole_number(text: str) -> int | None:
    """The number that the digits 0 to 9 write; None for any other text, and for more digits than a 64-bit integer has:
    of some thousands Python makes no number.
    """
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= MOST_DIGITS else None


def _escaped(found: re.Match[str]) -> str:
    number = ord(found[0])
    if 0xDC80 <= number <= 0xDCFF:  # the byte that the surrogate stands for
        number -= 0xDC00
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"

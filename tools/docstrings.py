"""An extension of griffe: docstrings, as this project writes them, in the Markdown of the site."""

from __future__ import annotations

import re
from typing import Any

import griffe


def as_markdown(text: str) -> str:
    r"""Examples become blocks of code, and the names that a paragraph explains are set off.

    >>> as_markdown(">>> 1 + 1\n2\n\nsize: in pixels.")
    '```pycon\n>>> 1 + 1\n2\n```\n\n`size`: in pixels.'
    """
    found = []
    for paragraph in re.split(r"\n{2,}", text):
        if paragraph.lstrip().startswith(">>>"):
            lines = paragraph.splitlines()
            spaces = min(len(line) - len(line.lstrip()) for line in lines)
            code = "\n".join(line[spaces:] for line in lines)
            found.append(f"```pycon\n{code}\n```")
        else:
            found.append(re.sub(r"^(\w+(?:, \w+)*): ", r"`\1`: ", paragraph, flags=re.MULTILINE))
    # reStructuredText's mark for the block of code that follows, which Markdown knows by its indentation.
    return re.sub(r"::$", ":", "\n\n".join(found), flags=re.MULTILINE)


class Docstrings(griffe.Extension):
    """Rewrites each docstring as it is read."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for each module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)

"""The last messages that a library logged, kept so that an error can quote them."""

from __future__ import annotations

from collections import deque


class LastMessages:
    """Keeps a library's last messages: TensorRT's exceptions say that something failed, its log says what.

    library: what the quotation calls it. most: how many messages are kept.
    """

    def __init__(self, library: str, most: int = 6) -> None:
        self._library = library
        self._lines: deque[str] = deque(maxlen=most)

    def add(self, message: str) -> None:
        """Keep a message, and drop the oldest if there are more than ``most``."""
        self._lines.append(message.strip())

    def quote(self) -> str:
        """The messages as text that follows a sentence without its full stop; empty where there are none."""
        return f". {self._library}'s last messages:\n  " + "\n  ".join(self._lines) if self._lines else ""

"""Where the command writes: lines that stay, and one of progress that is written over."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from django_pooled.poolstats.findings.finding import Level

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .results import Result

__all__ = ["Console"]

OFTEN = 1.0
"""Seconds between two lines of progress, where they can't be written over."""


class Console:
    """Writes for an operator at a terminal, or for a file.

    Args:
        write: Writes a text as it is.
        is_terminal: Whether a line can be written over.
        width: Columns of the terminal.
    """

    def __init__(
        self, write: Callable[[str], object], *, is_terminal: bool = False, width: int = 100
    ) -> None:
        self._write = write
        self._is_terminal = is_terminal
        self._width = width
        self._shown = ""
        self._shown_at = float("-inf")

    def say(self, line: str) -> None:
        """Write a line that stays."""
        self._write(f"{self._over()}{line}\n")
        self._shown = ""

    def progress(self, line: str) -> None:
        """Show how far something is."""
        if line == self._shown:
            return
        if self._is_terminal:
            line = line[: self._width - 1]
            self._write(f"{self._over()}{line}")
            self._shown = line
        elif monotonic() - self._shown_at >= OFTEN:
            self._shown_at = monotonic()
            self._shown = line
            self._write(f"{line}\n")

    def results(self, found: Iterable[Result]) -> None:
        """Write what became of an order in each process."""
        for one in found:
            word = "" if one.level is Level.FINE else f"{one.level.name.lower()}  "
            self.say(f"{word}{one.who}{': ' if one.who else ''}{one.sentence}")

    def _over(self) -> str:
        return f"\r{' ' * len(self._shown)}\r" if self._is_terminal and self._shown else ""

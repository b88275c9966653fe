"""Figures and texts for people, in few characters.

Texts have been made printable where they were read.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["brief", "count", "cut", "cut_left", "duration", "kinds", "labelled", "many"]

INDENT = 20

LONGEST_ERROR = 300
"""Characters of an error in a sentence."""


def count(number: float, limit: int = 100_000) -> str:
    """Write a number in full below a limit, else in thousands, millions or billions."""
    if number < limit:
        return f"{number:.0f}"
    if number < 999_500:
        return f"{number / 1e3:.0f}k"
    return f"{number / 1e6:.1f}M" if number < 999_950_000 else f"{number / 1e9:.1f}G"


def duration(seconds: float | None) -> str:
    """Write seconds in at most six characters, in the unit that fits; "-" for None."""
    if seconds is None:
        return "-"
    if seconds < 0.9995:
        return f"{seconds * 1e3:.{0 if seconds >= 0.00995 else 1}f} ms"
    if seconds < 599.5:
        return f"{seconds:.{0 if seconds >= 9.95 else 1}f} s"
    minutes = seconds / 60
    if minutes < 599.5:
        return f"{minutes:.0f} min"
    return f"{minutes / 60:.0f} h" if minutes < 60 * 99.5 else f"{minutes / 1440:.0f} d"


def many(number: float, one: str, more: str | None = None) -> str:
    """Put a number before a noun, in singular or plural."""
    return f"{number:.0f} {one if number == 1 else more or one + 's'}"


def kinds(counts: Mapping[Any, float], times: str = "") -> str:
    """List counts by kind, the largest first: "3 idle, 1 dead"."""
    found = sorted((-number, str(kind)) for kind, number in counts.items() if number)
    return ", ".join(f"{count(-number)} {times}{kind}" for number, kind in found)


def brief(error: str) -> str:
    """Return psycopg's words for a failed connect without their preface and repetitions."""
    first = error.partition(" Multiple connection attempts failed")[0]
    return cut(first.removeprefix("connection failed: "), LONGEST_ERROR)


def cut(text: str, width: int) -> str:
    """Return as much of the beginning of a text as fits, with three dots for the rest."""
    return text if len(text) <= width else text[: max(0, width - 3)] + "..."[:width]


def cut_left(text: str, width: int) -> str:
    """Return as much of the end of a text as fits, where dotted names differ."""
    return text if len(text) <= width else "..."[:width] + text[len(text) - max(0, width - 3) :]


def labelled(label: str, text: str, width: int) -> list[str]:
    """Lay a text out beside its label, wrapped if it is too long for a line."""
    first, *rest = textwrap.wrap(text, max(width, 2 * INDENT) - INDENT) or [""]
    return [f"  {label:<{INDENT - 2}}{first}", *(" " * INDENT + line for line in rest)]

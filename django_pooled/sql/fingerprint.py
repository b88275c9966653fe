"""A statement's text without its values, for people."""

from __future__ import annotations

import re

from django_pooled.lazy_pattern import lazy_pattern

from .lexer import tokens_of

__all__ = ["fingerprint"]

LONGEST = 200
"""Characters that are kept."""

LONGEST_READ = 20_000
"""Characters of a text that is read; a longer one is told by its first word."""

_LIST = lazy_pattern(r"\?(?:, \?)+")
_ROWS = lazy_pattern(r"(\(\?(?:, \.\.\.)?\))(?:, \(\?(?:, \.\.\.)?\))+")
_TIGHT = lazy_pattern(r" (?=[,.;)\]])|(?<=[.(\[]) | (?=::)|(?<=::) ")


def fingerprint(text: str) -> str:
    """Return a statement with a question mark for each literal and parameter, in one line.

    Comments are left out, and so are lists of values but for the first. A text that can't be
    divided safely is told by its first word: a part of it could be a value.
    """
    tokens = tokens_of(text) if len(text) <= LONGEST_READ else None
    if tokens is None:
        first = re.match(r"\s*([A-Za-z]+)\b", text)
        return f"{first[1].upper()} ..." if first else "..."
    shown = " ".join(map(_shown, tokens))
    shown = _TIGHT.sub("", shown)
    shown = _ROWS.sub(r"\1, ...", _LIST.sub("?, ...", shown))
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 3]}..."


def _shown(token: str) -> str:
    if token in ("%s", "0") or token.startswith("'"):
        return "?"
    return token.replace("%%", "%")

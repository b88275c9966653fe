"""The statements of a text, by its tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["explained", "statements_in"]

_QUERY_BEGINS = frozenset({"(", "select", "table", "values", "with"})


def statements_in(tokens: Sequence[str]) -> list[Sequence[str]] | None:
    """Return each statement of a text; None if the end of one cannot be told."""
    found = []
    start = depth = 0
    for place, token in enumerate([*tokens, ";"]):
        # The body of a function in standard SQL: BEGIN ATOMIC ...; ...; END.
        if depth:
            depth += (token == "case") - (token == "end")
        elif token == "atomic" and tokens[start] == "create" and tokens[place - 1] == "begin":
            depth = 1
        elif token == ";":
            if place > start:
                found.append(tokens[start:place])
            start = place + 1
    return None if depth else found


def explained(tokens: Sequence[str]) -> Sequence[str]:
    """Return the statement after EXPLAIN and its options; one without EXPLAIN as it is."""
    while tokens and tokens[0] == "explain":
        place = 1
        if tokens[1:2] == ["("] and ")" in tokens and tokens[2] not in _QUERY_BEGINS:
            # Options have no parentheses of their own.
            place = tokens.index(")") + 1
        while tokens[place : place + 1] and tokens[place] in ("analyze", "analyse", "verbose"):
            place += 1
        tokens = tokens[place:]
    return tokens

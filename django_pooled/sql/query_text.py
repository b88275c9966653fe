"""The text of a statement, in any form that psycopg takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from psycopg import sql

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["text_of"]


def text_of(query: object) -> str | None:
    """Return the text of a statement in any form that psycopg takes; None if it cannot be told.

    The values in a template string are left out.
    """
    if isinstance(query, str):
        return query
    try:
        if isinstance(query, bytes):
            return query.decode()
        if isinstance(query, sql.Composable):
            return query.as_string(None)
        if type(query).__module__ == "string.templatelib":
            return "".join(_parts_of(query))
    except Exception:
        # Values may be of types that only a connection has adapters for, and these may do anything.
        return None
    return None


def _parts_of(template: Any) -> Iterator[str]:
    # As in https://www.psycopg.org/psycopg3/docs/basic/tstrings.html
    for item in template:
        if isinstance(item, str):
            yield item
        elif isinstance(item.value, sql.Composable):
            yield item.value.as_string(None)
        elif isinstance(item.value, type(template)):
            yield from _parts_of(item.value)
        else:
            yield sql.Identifier(item.value).as_string(None) if item.format_spec == "i" else "$1"

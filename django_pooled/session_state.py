"""What a statement leaves behind in the session, beyond its transaction."""

from __future__ import annotations

import re

from psycopg.sql import Composable

__all__ = ["session_state_of"]

# PgBouncer's list of what its transaction pooling does not carry over:
# https://www.pgbouncer.org/features.html
_STATEMENTS = re.compile(
    r"""
    (?P<SET> SET\s+(?!LOCAL\b | TRANSACTION\b | CONSTRAINTS\b) | RESET\b)
    | (?P<LISTEN> (?:UN)?LISTEN\b)
    | (?P<LOAD> LOAD\b)
    | (?P<PREPARE> PREPARE\s+(?!TRANSACTION\b) | DEALLOCATE\b)
    | (?P<WITH_HOLD> DECLARE\s.*\bWITH\s+HOLD\b)
    | (?P<TEMPORARY>
        CREATE\s+(?:LOCAL\s+|GLOBAL\s+)?TEMP(?:ORARY)?\s(?!.*\bON\s+COMMIT\s+DROP\b)
        | SELECT\s.*\bINTO\s+(?:LOCAL\s+|GLOBAL\s+)?TEMP(?:ORARY)?\b)
    """,
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)
_CALLS = re.compile(
    r"""
    (?P<ADVISORY_LOCK> \bpg_(?:try_)?advisory_(?:un)?lock(?:_shared|_all)?\s*\()
    | (?P<SET> \bset_config\s*\((?!.*,\s*(?:true|'t(?:rue)?'|'on'|'1')\s*\)) | \bsetseed\s*\()
    | (?P<DBLINK> \bdblink_connect)
    """,
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)
# Where each statement begins: at the start and after each semicolon, past comments and parentheses.
_BEGINNING = re.compile(r"(?:^|;)(?:\s|--[^\n]*\n|/\*.*?\*/|\()*", re.DOTALL)


def session_state_of(query: object) -> str | None:
    """Return which kind of state *query* gives its session that outlives the transaction.

    One of a few names, so that it can be counted by; None for most statements. It goes by the
    text: what a function of the database's own does is not seen.
    """
    text = _text_of(query)
    lowered = text.lower()
    # Plain words are looked for first, one by one, since most statements have none of them.
    if (
        "set" in lowered
        or "listen" in lowered
        or "load" in lowered
        or "prepare" in lowered
        or "deallocate" in lowered
        or "hold" in lowered
        or "temp" in lowered
    ):
        for beginning in _BEGINNING.finditer(text):
            found = _STATEMENTS.match(text, beginning.end())
            if found is not None:
                return _told(found)
    if (
        "advisory" in lowered
        or "set_config" in lowered
        or "setseed" in lowered
        or "dblink_connect" in lowered
    ):
        found = _CALLS.search(text)
        if found is not None:
            return _told(found)
    return None


def _text_of(query: object) -> str:
    if isinstance(query, bytes):
        return query.decode("utf-8", "replace")
    return query.as_string() if isinstance(query, Composable) else str(query)


def _told(found: re.Match[str]) -> str:
    return str(found.lastgroup).replace("_", " ")

"""The effects of a statement by its text; where the text does not show them, the worst ones."""

from __future__ import annotations

import re
from functools import lru_cache, reduce
from typing import TYPE_CHECKING, NamedTuple

from django_pooled.lazy_pattern import lazy_pattern

from .calls import calls_in
from .lexer import tokens_of
from .query_text import text_of
from .session_state import graver
from .statements import explained, statements_in

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "REMEMBERED_LENGTH",
    "Effect",
    "effect_of",
    "effect_of_text",
    "only_reads",
    "sets_a_time_limit",
]

REMEMBERED_LENGTH = 4096
"""Characters of the longest text whose effect is remembered.

Long statements, such as one that inserts a thousand rows, are seldom the same twice; together with
the number of those that are remembered it bounds the memory, to a few megabytes."""
_REMEMBERED = 1024

# The patterns below see a statement as words in lower case with one blank between any two tokens;
# a quoted name is "q", a literal 's'. So no comment and no literal hides or feigns anything.

# What leaves nothing, and runs no function that its text names. A setting's name may have several
# parts, of which the first can be LOCAL, CONSTRAINTS or TRANSACTION.
_UTILITY = lazy_pattern(
    r"""
    (?: abort | begin | checkpoint | close | cluster | comment | commit | drop | end | fetch | grant
        | lock | move | notify | reassign | refresh | reindex | release | repack | revoke
        | rollback | savepoint | security | show | start | truncate | vacuum | wait\ for | analyze
        | analyse )\b
    | import\ foreign\b | prepare\ transaction\ 's' | discard\ (?:plans|sequences|temp|temporary)\b
    | set\ local\ (?!to\b|[.=]) | set\ constraints\ (?!to\b|[.=])
    | set\ transaction\ (?:isolation|read|not|deferrable|snapshot)\b
    | (?:create\ (?:or\ replace\ )?(?:constraint\ |event\ |trusted\ |procedural\ |recursive\ )*
        |alter\ (?:event\ )?)
      (?: access\ method | aggregate | cast | collation | conversion | database | default
        | foreign | function | group | language | large\ object | operator | policy | procedure
        | property\ graph | publication | role | routine | rule | schema | sequence | server
        | statistics | subscription | system | tablespace | text\ search | transform | trigger
        | type | user | view )\b
    """,
    re.VERBOSE,
)
# What leaves nothing either, but for what the functions leave that it calls.
_QUERY = lazy_pattern(
    r"""
    (?: select | table | values | with | declare | insert | update | delete | merge | copy
        | create\ (?:(?:local\ |global\ )?temp(?:orary)?\ |unlogged\ )?table
        | create\ (?:unique\ )?index | create\ materialized\ view
        | create\ domain | alter\ (?:domain|index|materialized\ view|table) )\b
    """,
    re.VERBOSE,
)
# PgBouncer's list of what its transaction pooling does not carry over, and some more:
# https://www.pgbouncer.org/features.html
_LEAVES = lazy_pattern(
    r"""
    (?P<ROLE> (?:set|reset)\ (?:session\ )?(?:role|authorization)\b)
    | (?P<SET> (?:set|reset)\b)
    | (?P<LISTEN> (?:un)?listen\b)
    | (?P<LOAD> load\b)
    | (?P<PREPARE> (?:prepare|deallocate|execute)\b)
    | (?P<DISCARD> discard\b)
    | (?P<EXTENSION> (?:create|alter)\ extension\b)
    | (?P<DO> do\b)
    | (?P<CALL> call\b)
    """,
    re.VERBOSE,
)
_TEMPORARY = lazy_pattern(
    r"""
    create\ (?:or\ replace\ )?(?:(?:local|global)\ )?temp(?:orary)?\b
        (?!\ table\ .*\bon\ commit\ drop\b)
    | .*(?<!insert\ )(?<!merge\ )\binto\ (?:(?:local|global)\ )?temp(?:orary)?\b
    """,
    re.VERBOSE,
)
_EXECUTES = lazy_pattern(r"create\b.*\bas execute\b")
_WITH_HOLD = lazy_pattern(r"declare\b.*\bwith hold\b")
_SCHEMA_WITH_PARTS = lazy_pattern(r"create schema\b.*\bcreate\b")
_CHANGES_OR_LOCKS = lazy_pattern(
    r"\b(?:insert|update|delete|merge|into)\b|\bfor (?:key )?share\b|\bfor no key\b"
)
_READS = lazy_pattern(
    r"(?:select|table|values|with|declare|show|close|wait for)\b|copy\b.* to stdout\b"
)
# What ends a transaction, or may: a savepoint is released and rolled back to by other words.
_ENDS = lazy_pattern(
    r"(?:commit|end|abort|prepare transaction|rollback(?!(?: work| transaction)? to\b))\b"
)
_UNDOES = lazy_pattern(r"rollback(?: work| transaction)? to\b")
# What works on the transaction alone, and writes nothing.
_CONTROLS = lazy_pattern(
    r"(?:savepoint|release|begin|start transaction|set local|set transaction|fetch|move|close|lock"
    r"|(?:commit|rollback)(?! prepared)|end|abort)\b"
)
_PRECEDES = lazy_pattern(
    r"(?:set|reset|notify|listen|unlisten|load|lock|discard|deallocate|savepoint|release|begin)\b"
)
_DRAWS_NOTHING = lazy_pattern(
    r"(?:update|delete|truncate|lock|savepoint|release|rollback|commit|begin|set|reset|notify)\b"
)
_PLAIN_WRITE = lazy_pattern(r"(?:insert|update|delete|merge)\b")
# The tables of a session are in a schema of its own.
_TEMPORARY_SCHEMA = "pg_temp"


class Effect(NamedTuple):
    """What a statement does, as far as its text shows it."""

    leaves: str | None
    """Kind of state that it may give its session; None where it gives none."""
    reads: bool
    """Whether it does nothing but read."""
    controls: bool = False
    """Whether it works on the transaction alone."""
    writes: bool = False
    """Whether it is one plain write."""
    ends: bool | None = False
    """Whether it ends the transaction; None if that cannot be told."""
    undoes: bool = False
    """Whether it rolls back to a savepoint."""
    precedes: bool = False
    """Whether the transaction may still get its isolation level after it."""
    draws: bool = True
    """Whether it may draw a value from a sequence, as far as a session remembers the last."""


def effect_of(query: object) -> Effect:
    """Return the effects that the text of *query* shows, and the worst where it shows none.

    The text does not show what a trigger, a view, an operator, a cast, a default or a policy calls.
    """
    text = query if type(query) is str else text_of(query)
    if text is None:
        return _NO_TEXT
    return effect_of_text(text) if len(text) <= REMEMBERED_LENGTH else _effect_of_text(text)


def only_reads(query: object) -> bool:
    """Tell whether the text of *query* shows that it does nothing but read.

    It does not write, notify, lock rows, or begin or end anything, and every function that it
    calls is known to do none of these.
    """
    return effect_of(query).reads


_NOTHING = Effect(None, reads=True)
_HARMLESS = Effect(None, reads=False)
_UNKNOWN = Effect("unknown", reads=False)
_NO_TEXT = _UNKNOWN._replace(ends=None)


def _effect_of_text(text: str) -> Effect:
    """As `effect_of`, without remembering."""
    tokens = tokens_of(text)
    if tokens is None:
        return _NO_TEXT
    statements = statements_in(tokens)
    if statements is None:
        return _NO_TEXT
    if not statements:
        return _NOTHING
    effects = [_effect_of_one(statement) for statement in statements]
    effect = effects[0] if len(effects) == 1 else _worst_of(effects)
    if effect.leaves is None and not effect.reads and _TEMPORARY_SCHEMA in text.lower():
        return effect._replace(leaves="TEMPORARY")
    return effect


def _worst_of(effects: Sequence[Effect]) -> Effect:
    return Effect(
        reduce(graver, (effect.leaves for effect in effects)),
        reads=all(effect.reads for effect in effects),
        controls=all(effect.reads or effect.controls for effect in effects),
        ends=any(effect.ends for effect in effects),
        undoes=any(effect.undoes for effect in effects),
        precedes=all(effect.precedes for effect in effects),
        draws=any(effect.draws for effect in effects),
    )


def _effect_of_one(tokens: Sequence[str]) -> Effect:
    """Return what one statement leaves and reads, and what it does to the transaction."""
    words = _words_of(tokens)
    effect = _effect_of_tokens(tokens)
    return effect._replace(
        controls=effect.leaves is None and bool(_CONTROLS.match(words)),
        writes=effect.leaves is None and bool(_PLAIN_WRITE.match(words)),
        ends=bool(_ENDS.match(words)),
        undoes=bool(_UNDOES.match(words)),
        precedes=bool(_PRECEDES.match(words)),
        draws=not effect.reads and not _DRAWS_NOTHING.match(words),
    )


_TIME_LIMIT = lazy_pattern(
    r"""(?ix) \s* SET \s+ (?:SESSION \s+)?
    (?:statement | lock | transaction | idle_in_transaction_session | idle_session)_timeout
    \s* (?: = | \bTO\b ) \s* (?: \w+ | '[\w\s.]*' ) \s* ;? \s*"""
)


def sets_a_time_limit(query: object) -> bool:
    """Tell whether *query* is shown to do nothing but limit how long the session may take."""
    return isinstance(query, str) and _TIME_LIMIT.fullmatch(query) is not None


def _words_of(tokens: Sequence[str]) -> str:
    return " ".join(_WORDS.get(token[0], token) for token in tokens).lstrip("( ")


effect_of_text = lru_cache(_REMEMBERED)(_effect_of_text)
"""As `effect_of`, for a text that is not longer than `REMEMBERED_LENGTH`."""


def _effect_of_tokens(tokens: Sequence[str]) -> Effect:
    tokens = explained(tokens)
    words = _words_of(tokens)
    if not words:
        return _NOTHING
    leaves = None
    if tokens[0] == "create" and _is_in_c(tokens):
        return Effect("LOAD", reads=False)
    if _TEMPORARY.match(words):
        leaves = "TEMPORARY"
    elif _UTILITY.match(words) and not _SCHEMA_WITH_PARTS.match(words):
        return _NOTHING if _READS.match(words) else _HARMLESS
    elif not _QUERY.match(words):
        found = _LEAVES.match(words)
        return Effect(found.lastgroup, reads=False) if found else _UNKNOWN
    elif _EXECUTES.match(words):
        leaves = "PREPARE"
    elif _WITH_HOLD.match(words):
        leaves = "WITH HOLD"
    elif "pg_settings" in "".join(tokens) and "update" in tokens:
        # Which is a way to say SET.
        leaves = "SET"
    reads = bool(_READS.match(words)) and not _CHANGES_OR_LOCKS.search(words)
    if not _only_declares(tokens):
        for call in calls_in(tokens):
            leaves, reads = graver(leaves, call.leaves), reads and call.reads
    return Effect(leaves, reads and leaves is None)


_WORDS = {'"': '"q"', "'": "'s'"}


def _is_in_c(tokens: Sequence[str]) -> bool:
    """Tell whether a function is created that is in a library, which is loaded then."""
    return any(
        token == "language" and tokens[place + 1].strip("\"'").lower() in ("c", "")
        for place, token in enumerate(tokens[:-1])
    )


def _only_declares(tokens: Sequence[str]) -> bool:
    """Tell whether it is a CREATE TABLE, which runs none of the expressions in it.

    Unless it takes its rows from a query, or has bounds of a partition, which are computed.
    """
    if tokens[0] != "create" or "table" not in tokens[1:4]:
        return False
    depth = 0
    for token in tokens:
        depth += (token == "(") - (token == ")")
        if not depth and token in ("as", "values"):
            return False
    return True

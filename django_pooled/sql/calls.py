"""Which functions a statement calls, by the places where its tokens name one."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from django_pooled.lazy_pattern import lazy_pattern

from .functions import POSTGIS, READS, WRITES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Call", "calls_in", "is_name"]

# Words that cannot name a function unless quoted: those that PostgreSQL reserves, and its
# "cannot be function or type" ones. https://www.postgresql.org/docs/current/sql-keywords-appendix.html
_WORDS = """
    all analyse analyze and any array as asc asymmetric both case cast check collate column
    constraint create default deferrable desc distinct do else end except false fetch for foreign
    from grant group having in initially intersect into lateral leading limit not null offset on
    only or order placing primary references returning select some symmetric table then to trailing
    true union unique user using variadic when where window with

    between bigint bit boolean char character coalesce dec decimal exists extract float greatest
    grouping inout int integer interval least national nchar none normalize nullif numeric out
    overlay position precision real row setof smallint substring time timestamp treat trim values
    varchar xmlattributes xmlconcat xmlelement xmlexists xmlforest xmlnamespaces xmlparse xmlpi
    xmlroot xmlserialize xmltable

    json_array json_arrayagg json_exists json_object json_objectagg json_query json_scalar
    json_serialize json_table json_value ilike
    """
_KEYWORDS = frozenset(_WORDS.split())
# Others, each of them only after one of these words.
_AFTER = {
    "by": {"group", "order", "partition"},
    "key": {"foreign", "primary"},
    "sets": {"grouping"},
    "varying": {"bit", "char", "character", "nchar"},
    "zone": {"time"},
}
# And between two operands.
_BETWEEN_OPERANDS = frozenset({"columns", "escape", "is", "join", "like", "overlaps"})
# After these a name is one of a table, an alias, a type, a method of access, with its columns.
_BEFORE_NAMES = frozenset(
    {"::", "as", "exists", "into", "ordinality", "references", "table", "tablesample", "with"}
)
_ACCESS_METHODS = frozenset(
    {"bloom", "brin", "btree", "gin", "gist", "hash", "hnsw", "ivfflat", "rum", "spgist"}
)
# What begins a query within parentheses and no list of columns.
_QUERY = frozenset({"(", "select", "table", "with"})

_KINDS = lazy_pattern(
    r"""
    (?P<ADVISORY_LOCK> pg_(?:try_)?advisory_(?:un)?lock(?:_shared|_all)?$)
    | (?P<SET> (?:set_config|set_limit)$)
    | (?P<SEED> setseed$)
    | (?P<REPLICATION> pg_(?:start_backup|backup_start|replication_origin_(?:session|xact)
        |create_(?:physical|logical)_replication_slot|copy_(?:physical|logical)_replication_slot))
    | (?P<DBLINK> dblink)
    | (?P<SEQUENCE> (?:currval|lastval)$)
    """,
    re.VERBOSE,
)
_LOCAL = frozenset({"true", "'true'", "'t'", "'on'", "'yes'", "'y'", "'1'"})
# All of PostGIS's read but these.
_POSTGIS_READS = lazy_pattern(
    r"st_(?!add(?!measure|point|band)|change|create|init|mod|move|new|rem(?!ove(?:point|repeated|irr)))"
)


class Call(NamedTuple):
    """What a call of a function may do."""

    leaves: str | None
    """Kind of state in the session, if any."""

    reads: bool
    """Whether it does nothing but read."""


_READING = Call(None, reads=True)
_WRITING = Call(None, reads=False)


def is_name(token: str) -> bool:
    """Tell whether a token is a word or a quoted name."""
    first = token[0]
    return first.isalpha() or first == '"' or first == "_" or first > "\x7f"


def calls_in(tokens: Sequence[str]) -> Iterator[Call]:
    """Tell of each call in a statement what it may do."""
    ends = _parentheses(tokens)
    if ends is None:
        yield Call("unknown", reads=False)
        return
    distinct_on = {
        end
        for start, end in ends.items()
        if start > 1 and tokens[start - 1] == "on" and tokens[start - 2] == "distinct"
    }
    for place in ends:
        before = tokens[place - 1] if place else ""
        if before == "%s":
            # Where no values are given, "%" is an operator, and "s" a function.
            yield Call("function", reads=False)
        elif before and is_name(before):
            first = _beginning_of_name(tokens, place - 1)
            path = tokens[first : place - 1 : 2]
            if not _is_no_call(tokens, first, place, ends, distinct_on):
                yield _judge(before, path, tokens[place + 1 : ends[place]])
    yield from _attributes(tokens)


def _attributes(tokens: Sequence[str]) -> Iterator[Call]:
    # ROW.NAME is NAME(ROW) to PostgreSQL, where no column has that name.
    for place, token in enumerate(tokens[:-1]):
        if token != "." or not place or not is_name(tokens[place + 1]):
            continue
        name = tokens[place + 1]
        if tokens[place + 2 : place + 3] == ["("]:
            continue
        bare = name.strip('"')
        if tokens[place - 1] in (")", "]") or bare in WRITES or _KINDS.match(bare):
            yield _judge(name, [], [])


def _parentheses(tokens: Sequence[str]) -> dict[int, int] | None:
    """Return where each parenthesis ends, by where it starts; None if they do not match."""
    starts: list[int] = []
    ends: dict[int, int] = {}
    for place, token in enumerate(tokens):
        if token == "(":
            starts.append(place)
        elif token == ")":
            if not starts:
                return None
            ends[starts.pop()] = place
    return None if starts else ends


def _beginning_of_name(tokens: Sequence[str], place: int) -> int:
    while place > 1 and tokens[place - 1] == "." and is_name(tokens[place - 2]):
        place -= 2
    return place


def _is_no_call(
    tokens: Sequence[str], first: int, place: int, ends: dict[int, int], distinct_on: set[int]
) -> bool:
    """Tell whether the name from *first* to the parenthesis at *place* calls nothing there."""
    name = tokens[place - 1]
    if first == 0:
        # The statement's own first word.
        return True
    before, earlier = tokens[first - 1], tokens[first - 2] if first > 1 else ""
    if before in _BEFORE_NAMES or before[0] == '"':
        return True
    if before == ")":
        return first - 1 not in distinct_on
    if first == place - 1:
        if name in _KEYWORDS or before in _AFTER.get(name, ()):
            return True
        if name in _BETWEEN_OPERANDS and _is_operand(before):
            return True
        if name == "materialized" and (earlier, before) == ("as", "not"):
            return True
    return _is_column_list(tokens, first, place, ends)


def _is_operand(token: str) -> bool:
    return (
        token in ("%s", "0", "]") or token[0] == "'" or (is_name(token) and token not in _KEYWORDS)
    )


def _is_column_list(tokens: Sequence[str], first: int, place: int, ends: dict[int, int]) -> bool:
    head, name, before = tokens[0], tokens[place - 1], tokens[first - 1]
    if before == "recursive" or (before == "," and _begins_query(tokens, ends[place] + 1)):
        return True
    if head == "create":
        if before == "view":
            return True
        if "index" in tokens[1:3] and "on" in tokens:
            table = tokens.index("on") + 1
            if first == table or (first == table + 1 and before == "only"):
                return True
        if name in ("range", "list", "hash") and before == "by":
            # PARTITION BY of the table, and not of a window.
            return not any(start < place < end for start, end in ends.items() if start != place)
    if before == "using" and name in _ACCESS_METHODS:
        return "index" in tokens[1:3] or tokens[first - 2] == "exclude"
    if head == "alter":
        return before == "type" or name in ("set", "reset")
    if head == "copy":
        return first == 1 or (name in ("stdin", "stdout") and before in ("from", "to"))
    if name in ("cube", "rollup"):
        return "group" in tokens[:place]
    if name == "set":
        return head in ("update", "insert", "merge")
    if name == "conflict":
        return before == "on" and "insert" in tokens and "do" in tokens[place:]
    return name == "insert" and before == "then" and "matched" in tokens[:place]


def _begins_query(tokens: Sequence[str], place: int) -> bool:
    """Tell whether AS and a query in parentheses come next, as after the name of a WITH."""
    rest = list(tokens[place : place + 6])
    if rest[:1] != ["as"]:
        return False
    rest = rest[1:]
    if rest[:1] == ["not"]:
        rest = rest[1:]
    if rest[:1] == ["materialized"]:
        rest = rest[1:]
    if rest[:1] != ["("] or len(rest) < 2:
        return False
    return rest[1] in _QUERY or rest[1:3] in (["values", "("], ["insert", "into"])


def _judge(token: str, path: Sequence[str], arguments: Sequence[str]) -> Call:
    name = token[1:-1] if token[0] == '"' else token
    if not path or (len(path) == 1 and path[0].strip('"') == "pg_catalog"):
        if name in READS:
            return _READING
        if name in WRITES or (name == "set_config" and _is_local(arguments)):
            return _WRITING
        if not path and name in POSTGIS:
            return _READING if _POSTGIS_READS.match(name) else _WRITING
    found = _KINDS.match(name)
    return Call(str(found.lastgroup).replace("_", " ") if found else "function", reads=False)


def _is_local(arguments: Sequence[str]) -> bool:
    """Tell whether the arguments of set_config() show that it is for the transaction alone."""
    depth, commas = 0, []
    for place, token in enumerate(arguments):
        if token in ("(", "["):
            depth += 1
        elif token in (")", "]"):
            depth -= 1
        elif token == "," and not depth:
            commas.append(place)
    # By a search_path even plain names may lead to temporary tables.
    name = arguments[0] if arguments else ""
    if not name.startswith("'") or name == "''" or "search_path" in name.lower():
        return False
    return len(commas) == 2 and commas[1] == len(arguments) - 2 and arguments[-1].lower() in _LOCAL

"""A statement's text, divided into tokens as PostgreSQL divides it."""

from __future__ import annotations

import re

from django_pooled.lazy_pattern import lazy_pattern

__all__ = ["tokens_of"]

# As PostgreSQL's own scanner divides a text, and nothing for what depends on a setting of the
# session: https://www.postgresql.org/docs/current/sql-syntax-lexical.html. Anything beyond ASCII
# is a letter to it. A set of letters is all but the other ones, since one that ends with the last
# character takes Python 20 ms to compile. The placeholders are psycopg's; of many in a row one is
# enough.
_LETTER = r"[^\x00-@\[-\^`{-\x7f]"
_LETTER_OR_DIGIT = r"[^\x00-/:-@\[-\^`{-\x7f]"
# A dollar sign too.
_IN_WORD = r"[^\x00-#%-/:-@\[-\^`{-\x7f]"
# No word goes on here, nor a quotation.
_ENDS = rf"(?!{_IN_WORD}|['\"])"
_TOKEN = lazy_pattern(
    rf"""
    [ \t\n\r\f\v]+
    | (?P<nested> /\*)
    | (?P<line> --[^\n\r]*)
    | (?P<escaped> [eE]'[^'\\]*(?:(?:''|\\.)[^'\\]*)*' | [uU]&'[^']*(?:''[^']*)*')
    | (?P<refused> [uU]&" | %\((?=[^)]*['"$/;-]))
    | (?P<word> {_LETTER}{_IN_WORD}*)
    | (?P<plain> '[^']*(?:''[^']*)*')
    | (?P<quoted> "[^"]*(?:""[^"]*)*")
    | (?P<dollar> \$(?P<tag>(?:{_LETTER}{_LETTER_OR_DIGIT}*)?)\$.*?\$(?P=tag)\$)
    | (?P<value> %s(?:(?:,[ ]?|\),[ ]?\()%s){{8,}}(?!{_IN_WORD})
        | %[sbt](?!{_IN_WORD}) | %\([ ]*[A-Za-z_]\w*[ ]*\)[sbt](?!{_IN_WORD})
        | \$[0-9]+{_ENDS})
    | (?P<number>
        (?:[1-9][0-9]*(?:,[ ]?[1-9][0-9]*){{8,}} | 0[xX][0-9A-Fa-f_]+ | 0[oObB][0-7_]+
        | (?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][+-]?[0-9_]+)?)
        {_ENDS})
    | (?P<operator> :: | %% | [-+*/<>=~!@\#%^&|`?.,;:()\[\]{{}}])
    """,
    re.VERBOSE | re.DOTALL,
)
_COMMENT_EDGE = lazy_pattern(r"/\*|\*/")
# psycopg would put a value there, past the quotes.
_VALUE_WITHIN = lazy_pattern(r"%(?:[sbt](?!\w)|\()")


def tokens_of(text: str) -> list[str] | None:
    """Divide *text* into words in lower case, quoted names, literals and operators."""
    tokens: list[str] = []
    if "\0" in text:
        # Where the statement ends, for libpq.
        return None
    position = 0
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None:
            return None
        position, kind, token = found.end(), found.lastgroup, found[0]
        if kind == "word":
            # Other letters have capitals among ASCII's, for Python.
            tokens.append(token.lower() if token.isascii() else token)
            continue
        if kind == "operator":
            tokens.append(token)
            continue
        if kind is None:
            continue
        if kind == "nested":
            end = _end_of_comment(text, position)
            if end is None:
                return None
            position, token = end, text[position:end]
        if kind == "refused" or (kind == "plain" and "\\'" in token):
            # The latter ends there or not, as standard_conforming_strings has it.
            return None
        if kind == "value" or kind == "number":
            tokens.append("%s" if kind == "value" else "0")
            continue
        if "%" in token and _VALUE_WITHIN.search(token.replace("%%", "")):
            return None
        if kind in ("plain", "quoted"):
            tokens.append(token)
        elif kind in ("escaped", "dollar"):
            tokens.append("''")
    return tokens


def _end_of_comment(text: str, position: int) -> int | None:
    depth = 1
    for edge in _COMMENT_EDGE.finditer(text, position):
        depth += 1 if edge[0] == "/*" else -1
        if not depth:
            return edge.end()
    return None

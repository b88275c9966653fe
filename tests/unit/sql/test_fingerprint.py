"""Statements without their values."""

from __future__ import annotations

import pytest

from django_pooled.sql.fingerprint import fingerprint


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            'SELECT "shop_item"."id" FROM "shop_item" WHERE ("shop_item"."name" = %s) LIMIT 21',
            'select "shop_item"."id" from "shop_item" where ("shop_item"."name" = ?) limit ?',
        ),
        ("SELECT 1 FROM a WHERE b IN (%s, %s, %s)", "select ? from a where b in (?, ...)"),
        (
            "INSERT INTO t (a, b) VALUES (%s, %s), (%s, %s) RETURNING t.id",
            "insert into t (a, b) values (?, ...), ... returning t.id",
        ),
        ("UPDATE card SET pin = 'it''s 1234' -- 99\n", "update card set pin = ?"),
        ("select E'a\\'b', /* 4711 */ $x$secret$x$", "select ?, ..."),
        ("SELECT x::int + 12.5e3 FROM y WHERE z = $1", "select x::int + ? from y where z = ?"),
        ("SELECT name LIKE '%%secret'", "select name like ?"),
        # These can't be divided safely.
        ("SELECT U&\"d!0061t\" UESCAPE '!'", "SELECT ..."),
        ("SELECT 'a\\'b'", "SELECT ..."),
        ("DO 'begin ' 'unfinished", "DO ..."),
        ("'secret", "..."),
    ],
)
def test_each_value_is_a_question_mark(text: str, expected: str) -> None:
    assert fingerprint(text) == expected


def test_a_long_statement_is_cut() -> None:
    columns = ", ".join(f"column_{number}" for number in range(100))
    assert len(fingerprint(f"SELECT {columns}")) == 200
    assert fingerprint(f"SELECT {'a, ' * 10_000} b") == "SELECT ..."

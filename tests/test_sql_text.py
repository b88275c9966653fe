"""What transaction mode takes for state of the session, and what not."""

from __future__ import annotations

import pytest
from psycopg import sql

from django_pooled.sql_text import session_state_of


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("SET statement_timeout TO '77s'", "SET"),
        ("set session characteristics as transaction read only", "SET"),
        ("  /* a comment */ SET search_path TO other", "SET"),
        ("-- a comment\nSET search_path TO other", "SET"),
        ("SELECT 1; SET search_path TO other", "SET"),
        ("RESET ALL", "SET"),
        ("LISTEN news", "LISTEN"),
        ("PREPARE question AS SELECT 1", "PREPARE"),
        ("DEALLOCATE ALL", "PREPARE"),
        ("DECLARE reader CURSOR WITH HOLD FOR SELECT 1", "WITH HOLD"),
        ("CREATE TEMPORARY TABLE scratch (x int)", "TEMPORARY"),
        ("CREATE TEMP VIEW v AS SELECT 1", "TEMPORARY"),
        ("SELECT 1 AS x INTO TEMP scratch", "TEMPORARY"),
        ("SELECT pg_advisory_lock(1)", "ADVISORY LOCK"),
        ("SELECT pg_try_advisory_lock_shared(%s)", "ADVISORY LOCK"),
        ("SELECT set_config('search_path', 'other', false)", "SET"),
        ("SELECT set_config('app.user', %s, %s)", "SET"),
        ("LOAD 'auto_explain'", "LOAD"),
        (b"SET search_path TO other", "SET"),
        (sql.SQL("SET search_path TO {}").format(sql.Identifier("other")), "SET"),
    ],
)
def test_state_that_outlives_a_transaction_is_seen(query: object, told: str) -> None:
    assert session_state_of(query) == told


@pytest.mark.parametrize(
    "query",
    [
        "SELECT 1",
        "SET LOCAL statement_timeout TO '77s'",
        "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        "SET CONSTRAINTS ALL DEFERRED",
        "UPDATE app_note SET text = 'LISTEN to this'",
        "INSERT INTO app_note (text) VALUES ('x') ON CONFLICT DO UPDATE SET text = 'y'",
        "SELECT pg_advisory_xact_lock(1)",
        "SELECT set_config('app.user', '7', true)",
        "SELECT set_config('app.user', %s, 'on')",
        "CREATE TEMP TABLE scratch (x int) ON COMMIT DROP",
        "DECLARE reader CURSOR FOR SELECT 1",
        "PREPARE TRANSACTION 'one'",
        'SELECT "temp" FROM "load"',
        b"SELECT 1",
    ],
)
def test_what_ends_with_its_transaction_is_not(query: object) -> None:
    assert session_state_of(query) is None

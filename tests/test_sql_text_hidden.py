"""Calls hidden in harmless statements: what a server shows to leak must not have passed."""

from __future__ import annotations

import random
from contextlib import suppress
from typing import TYPE_CHECKING

import psycopg
import pytest

from django_pooled.sql_text import only_reads, session_state_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from example_project.embedded_postgres import EmbeddedServer

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

    def filled(text: str) -> str:
        while "{" in text:
            for slot, choices in SLOTS.items():
                text = text.replace(slot, chance.choice(choices), 1)
        return text

    return filled(chance.choice(STATEMENTS))


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
    options = f"-c standard_conforming_strings={request.param} -c escape_string_warning=off"
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
            assert session_state_of(statement) is not None, statement
            assert not only_reads(statement), statement
        session.execute(
            "SET app.hidden = 'unseen'; DELETE FROM hidden; INSERT INTO hidden DEFAULT VALUES"
        )
    assert left > 100

"""What the text of a statement shows, and that it counts as the worst where it does not show it."""

from __future__ import annotations

import sys

import pytest
from psycopg import sql

from django_pooled.sql import effects
from django_pooled.sql.effects import effect_of, only_reads
from django_pooled.sql.query_text import text_of


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("SET statement_timeout TO '77s'", "SET"),
        ("set session characteristics as transaction read only", "SET"),
        ("  /* a comment */ SET search_path TO other", "SET"),
        ("-- a comment\nSET search_path TO other", "SET"),
        ("SET/**/search_path/**/TO other", "SET"),
        ("SELECT 1; SET search_path TO other", "SET"),
        ("SELECT ';' ;;SET search_path TO other", "SET"),
        ("RESET ALL", "SET"),
        ("SET TIME ZONE 'UTC'", "SET"),
        # Settings whose names have a first part that is a word of SQL.
        ("SET local.tenant TO 'a'", "SET"),
        ("SET transaction.tenant = 'a'", "SET"),
        ("SET constraints.tenant = 'a'", "SET"),
        ("SET ROLE other", "ROLE"),
        ("SET SESSION ROLE other", "ROLE"),
        ("RESET ROLE", "ROLE"),
        ("SET SESSION AUTHORIZATION other", "ROLE"),
        ("RESET SESSION AUTHORIZATION", "ROLE"),
        ("DISCARD ALL", "DISCARD"),
        ("LISTEN news", "LISTEN"),
        ("UNLISTEN *", "LISTEN"),
        ("PREPARE question AS SELECT 1", "PREPARE"),
        ("PREPARE transaction AS SELECT 1", "PREPARE"),
        ("EXECUTE question", "PREPARE"),
        ("DEALLOCATE ALL", "PREPARE"),
        ("CREATE TABLE answers AS EXECUTE question", "PREPARE"),
        ("DECLARE reader CURSOR WITH HOLD FOR SELECT 1", "WITH HOLD"),
        ("DECLARE reader NO SCROLL CURSOR /* */ WITH\nHOLD FOR SELECT 1", "WITH HOLD"),
        ("CREATE TEMPORARY TABLE scratch (x int)", "TEMPORARY"),
        ("CREATE LOCAL TEMP TABLE scratch (x int) ON COMMIT DELETE ROWS", "TEMPORARY"),
        ("CREATE TEMP VIEW v AS SELECT 1", "TEMPORARY"),
        ("CREATE OR REPLACE TEMP VIEW v AS SELECT 'ON COMMIT DROP'", "TEMPORARY"),
        ("CREATE TEMP SEQUENCE s", "TEMPORARY"),
        ("CREATE TABLE pg_temp.scratch (x int)", "TEMPORARY"),
        ('CREATE TABLE "pg_temp"."scratch" (x int)', "TEMPORARY"),
        ("SET LOCAL search_path TO pg_temp; CREATE TABLE scratch (x int)", "TEMPORARY"),
        ("SELECT 1 AS x INTO TEMP scratch", "TEMPORARY"),
        ("SELECT 1 AS x INTO LOCAL TEMPORARY TABLE scratch", "TEMPORARY"),
        ("SELECT pg_advisory_lock(1)", "ADVISORY LOCK"),
        ("SELECT pg_try_advisory_lock_shared(%s)", "ADVISORY LOCK"),
        ("SELECT pg_advisory_unlock_all()", "ADVISORY LOCK"),
        # NAME(VALUE) can be written as VALUE.NAME.
        ("SELECT (1::bigint).pg_advisory_lock", "ADVISORY LOCK"),
        ("SELECT n.pg_advisory_lock FROM generate_series(1::bigint, 2) n", "ADVISORY LOCK"),
        ("SELECT (a.b).c FROM a", "function"),
        ("SELECT set_config('search_path', 'other', false)", "SET"),
        ("SELECT set_config('app.user', %s, %s)", "SET"),
        ("SELECT set_config('a.b', %s, true), set_config('a.b', %s, false)", "SET"),
        ("SELECT set_config('a.b', coalesce(%s, 'true'), 'true' = 'false')", "SET"),
        ("SELECT set_config(VARIADIC ARRAY['a.b', 'c', true])", "SET"),
        ("SELECT setseed(0.5)", "SEED"),
        ("SET a.b = 1; SELECT setseed(0.5)", "SEED"),
        ("SELECT setseed(0.5), months(1)", "function"),
        ("CREATE TEMP TABLE scratch AS SELECT dblink_connect('x')", "DBLINK"),
        ("DECLARE reader CURSOR WITH HOLD FOR SELECT months(1)", "function"),
        ("UPDATE pg_settings SET setting = months(1)", "function"),
        ("SELECT months(1); LOAD 'auto_explain'", "LOAD"),
        ("UPDATE pg_settings SET setting = 'x' WHERE name = 'work_mem'", "SET"),
        ('UPDATE "pg_catalog"."pg_settings" SET setting = %s', "SET"),
        ("LOAD 'auto_explain'", "LOAD"),
        ("CREATE FUNCTION f() RETURNS int LANGUAGE c AS 'library', 'symbol'", "LOAD"),
        ("CREATE FUNCTION f() RETURNS int AS 'library' LANGUAGE 'C'", "LOAD"),
        ("CREATE EXTENSION hstore", "EXTENSION"),
        ("SELECT dblink_connect('dbname=other')", "DBLINK"),
        ("SELECT * FROM extensions.dblink('dbname=other', 'SELECT 1') AS t (x int)", "DBLINK"),
        ("SELECT currval('s')", "SEQUENCE"),
        ("INSERT INTO t (x) VALUES (lastval())", "SEQUENCE"),
        ("DO $$ BEGIN PERFORM 1; END $$", "DO"),
        ("CALL close_the_month()", "CALL"),
        ("SELECT close_the_month()", "function"),
        ("SELECT app.lower('X')", "function"),
        ("SELECT \"LOWER\"('X')", "function"),
        ("SELECT * FROM app_note, months(2024) AS m (month)", "function"),
        ("SELECT DISTINCT ON (x) months(x) FROM app_note", "function"),
        ("SELECT x %s(1)", "function"),
        ("INSERT INTO app_note (text) SELECT months(1)", "function"),
        ("CREATE TABLE app_copy AS SELECT months(1)", "function"),
        ("ALTER TABLE app_note ALTER COLUMN x TYPE int USING months(x)", "function"),
        ("CREATE INDEX i ON app_note (months(x))", "function"),
        ("EXPLAIN (ANALYZE, BUFFERS off) SELECT months(1)", "function"),
        ("EXPLAIN ANALYZE EXECUTE question", "PREPARE"),
        ("COPY (SELECT months(1)) TO STDOUT", "function"),
        # Letters beyond ASCII that have capitals in it, for Python.
        ("SELECT chec\u212a(1), \u017fum(1)", "function"),
        ("SELECT U&\"\\0073et_config\"('a.b', 'c', false)", "unknown"),
        # Where the literal ends depends on a setting.
        ("SELECT 'a\\' || set_config('a.b', 'c', false) --'", "unknown"),
        ("SELECT 'no end", "unknown"),
        ("SELECT 1 /* /* no end */", "unknown"),
        ("CREATE TEMP TABLE scratch (x int) \0 ON COMMIT DROP", "unknown"),
        ("SELECT '%s'", "unknown"),
        ("SELECT 1 /* %(name)s */", "unknown"),
        ("SELECT %(it's)s, set_config('a.b', 'c', false), %(it's)s", "unknown"),
        ("SELECT f)(", "unknown"),
        ("FROBNICATE", "unknown"),
        ("WAIT", "unknown"),
        (b"SET search_path TO other", "SET"),
        (b"SELECT '\xff'", "unknown"),
        (sql.SQL("SET search_path TO {}").format(sql.Identifier("other")), "SET"),
        (sql.SQL("SELECT {}").format(sql.Literal(object())), "unknown"),
        (None, "unknown"),
    ],
)
def test_what_may_outlive_the_transaction_is_told(query: object, told: str) -> None:
    assert effect_of(query).leaves == told
    assert not only_reads(query)


@pytest.mark.parametrize(
    "query",
    [
        "SET LOCAL statement_timeout TO '77s'",
        "SET LOCAL ROLE other",
        "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        "SET CONSTRAINTS ALL DEFERRED",
        'SET CONSTRAINTS "a"."b" IMMEDIATE; SET CONSTRAINTS "a"."b" DEFERRED',
        "BEGIN; COMMIT",
        "SAVEPOINT x; ROLLBACK TO SAVEPOINT x; RELEASE SAVEPOINT x",
        "UPDATE app_note SET text = 'LISTEN to this'",
        'UPDATE "app_note" SET ("text", "x") = (%s, %s)',
        "INSERT INTO app_note (text) VALUES ('x') ON CONFLICT (x) DO UPDATE SET text = 'y'",
        'INSERT INTO "app"."note" AS n ("x") SELECT * FROM UNNEST((%s)::int[]) RETURNING "x"',
        "MERGE INTO t USING s ON t.a = s.a WHEN NOT MATCHED THEN INSERT (a) VALUES (s.a)",
        "WITH gone (x) AS (DELETE FROM a RETURNING x) INSERT INTO b (x) SELECT x FROM gone",
        "SELECT 1 FROM app_note FOR NO KEY UPDATE",
        "SELECT 1 FROM app_note FOR KEY SHARE SKIP LOCKED",
        "SELECT 1 AS x INTO UNLOGGED scratch",
        "SELECT pg_advisory_xact_lock(1)",
        "SELECT pg_try_advisory_xact_lock(%s)",
        "SELECT set_config('app.user', '7', true)",
        "SELECT set_config('app.tenant', %s, true)",
        "SELECT set_config('app.user', %s, 'on'), set_config('a.b', coalesce(%s, ''), TRUE)",
        "SELECT pg_notify('news', %s)",
        "NOTIFY news, 'SET'",
        "SELECT nextval('s'), setval('s', coalesce(max(id), 1), max(id) IS NOT null) FROM t",
        "SELECT pg_current_xact_id()",
        "SELECT lo_create(0)",
        "CREATE TEMP TABLE scratch (x int) ON COMMIT DROP",
        "CREATE TEMP TABLE scratch ON COMMIT DROP AS SELECT lower(x) AS x FROM t",
        "CREATE TABLE temp (x varchar(3) DEFAULT months(1) CHECK (months(2) > 1))",
        "INSERT INTO temp (x) VALUES (1)",
        "CREATE FUNCTION f(x int DEFAULT g(1)) RETURNS int LANGUAGE sql AS $$ SELECT set() $$",
        "CREATE TRIGGER t BEFORE INSERT ON a FOR EACH ROW EXECUTE FUNCTION f()",
        'CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS "i" ON "a" USING gin ("b" x_ops)'
        " INCLUDE (c)",
        "ALTER TABLE a ADD EXCLUDE USING gist (b WITH &&), ADD COLUMN c geometry(POINT, 4326)",
        "ALTER TABLE a ADD CONSTRAINT c FOREIGN KEY (x) REFERENCES b (y) DEFERRABLE",
        "GRANT SELECT (a), UPDATE (b) ON t TO r",
        "DROP FUNCTION IF EXISTS f(int)",
        "TRUNCATE a, b RESTART IDENTITY",
        "VACUUM (ANALYZE) t (a, b)",
        "REPACK (CONCURRENTLY) t USING INDEX i",
        "CREATE PROPERTY GRAPH shop VERTEX TABLES (a, b)",
        "UPDATE t FOR PORTION OF valid FROM '2026-01-01' TO '2026-02-01' SET x = 1",
        "INSERT INTO t (x) VALUES (1) ON CONFLICT (x) DO SELECT FOR UPDATE RETURNING x",
        "LOCK TABLE t IN SHARE MODE",
        "COPY t (a, b) FROM STDIN WITH (FORMAT csv)",
        "COPY t TO '/tmp/file'",
        "DISCARD TEMP",
        "PREPARE TRANSACTION 'one'",
        "COMMIT PREPARED 'one'",
        "FETCH 5 FROM reader",
    ],
)
def test_what_ends_with_its_transaction_leaves_nothing_but_is_more_than_reading(
    query: object,
) -> None:
    assert effect_of(query).leaves is None
    assert not only_reads(query)


@pytest.mark.parametrize(
    "query",
    [
        "",
        ";",
        "-- nothing",
        "SELECT 1",
        "TABLE t",
        "VALUES (1, lower('x'))",
        "SHOW TimeZone",
        "WAIT FOR LSN '0/306EE20' WITH (timeout '1s', no_throw)",
        "DECLARE reader CURSOR FOR SELECT 1",
        "CLOSE reader",
        "COPY (SELECT 1) TO STDOUT (FORMAT csv)",
        "EXPLAIN (ANALYZE) SELECT count(*) FROM t",
        "EXPLAIN (SELECT 1) UNION (SELECT 2)",
        'SELECT "temp", "update" FROM "load" -- SET x',
        "SELECT 'FOR UPDATE', E'\\'; SET x', $$ set_config( $$, $a$ $$ $a$",
        'SELECT COUNT(*) AS "__count" FROM "a" U0 WHERE NOT (U0."x" IN (%s, %s) AND'
        " EXISTS(SELECT 1))",
        "SELECT pg_catalog.count (*), \"lower\"('x'), array_agg(x ORDER BY y) FILTER"
        " (WHERE z) FROM t",
        "SELECT row_number() OVER (PARTITION BY (a) ORDER BY b ROWS BETWEEN 1 PRECEDING"
        " AND (2) FOLLOWING)",
        "SELECT x::numeric(10, 2), CAST(y AS char varying(3)), interval '1 day',"
        " timestamp(3) '2024-01-01'",
        "WITH RECURSIVE t (n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM t), u (m) AS"
        " (SELECT 1) TABLE u",
        "SELECT (a AT TIME ZONE 'UTC')::date, EXTRACT(YEAR FROM a AT TIME ZONE (%s)) FROM t",
        "SELECT a, count(*) FROM t GROUP BY GROUPING SETS ((a), ()), ROLLUP (a), CUBE (a)",
        "SELECT * FROM a JOIN (b LEFT JOIN c USING (id)) ON (a.x LIKE (b.y)) TABLESAMPLE"
        " system (10)",
        "SELECT * FROM generate_series(1, 3) WITH ORDINALITY AS s (a, b),"
        " jsonb_to_record(%s) AS r (c int)",
        "SELECT ST_DWithin(g, ST_GeomFromEWKB(%s), 5), similarity(a, b), a <-> %(point)s FROM t",
        "SELECT 5 %% 2, a ->> 'b', a -> %s, x[1:2], 1_000, 0x1F, 1.5e-3, $1",
        "SELECT x FROM t WHERE n LIKE '%son' OR n LIKE '100%%'",
        b"SELECT 1",
        sql.SQL("SELECT {} FROM {}").format(sql.Literal("SET"), sql.Identifier("set_config")),
    ],
)
def test_what_is_seen_to_read_only_reads(query: object) -> None:
    assert only_reads(query)
    assert effect_of(query).leaves is None


def test_the_worst_of_several_statements_counts() -> None:
    assert effect_of("SELECT 1; UPDATE t SET x = 1; LISTEN news; SELECT 2").leaves == "LISTEN"
    assert only_reads("SELECT 1; SELECT 2")
    assert not only_reads("SELECT 1; UPDATE t SET x = 1; SELECT 2")


def test_long_statements_are_judged_and_not_remembered() -> None:
    effects.effect_of_text.cache_clear()
    rows = ", ".join(["(%s, %s)"] * 2000)
    assert effect_of(f"INSERT INTO t (a, b) VALUES {rows}").leaves is None
    assert effect_of(f"INSERT INTO t (a, b) VALUES {rows}, (%s, months(1))").leaves == "function"
    assert effects.effect_of_text.cache_info().currsize == 0
    assert effect_of("SELECT 1").leaves is None
    assert effects.effect_of_text.cache_info().currsize == 1


def test_the_text_of_a_statement_is_that_of_every_form_that_psycopg_takes() -> None:
    assert text_of("SELECT 1") == "SELECT 1"
    assert text_of("SELECT 'ä'".encode()) == "SELECT 'ä'"
    assert text_of(sql.SQL("SELECT {}").format(sql.Placeholder("x"))) == "SELECT %(x)s"
    assert text_of(b"SELECT '\xff'") is None
    assert text_of(7) is None


@pytest.mark.skipif(sys.version_info < (3, 14), reason="Python has no template strings")
def test_the_text_of_a_template_string_is_without_its_values() -> None:
    names = {"value": 7, "name": "set_config", "part": sql.SQL("SET x TO y")}
    template = eval('t"SELECT {value}, {name:i} FROM t"', names)
    assert text_of(template) == 'SELECT $1, "set_config" FROM t'
    assert effect_of(eval('t"SELECT 1; {part:q}"', names)).leaves == "SET"

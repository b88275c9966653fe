"""What is said of PgBouncer when it has no server connection left, with its console and without."""

from __future__ import annotations

import re
import signal
from contextlib import ExitStack, contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from django.db import OperationalError, connections

from django_pooled.poolstats.findings import overview_findings as findings
from django_pooled.poolstats.findings.finding import Level
from django_pooled.poolstats.overview import Overview
from django_pooled.poolstats.processes.collect import Collection
from django_pooled.poolstats.server.view import ServerProbe
from django_pooled.poolstats.tables.overview_table import as_table
from django_pooled.stats.snapshot import process_report
from tests.servers import pgbouncer
from tests.servers.pgbouncer import PgBouncer
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django_pooled.poolstats.server.view import ServerView
    from embedded_postgres import EmbeddedServer
    from tests.support.pools import MakeDatabase

pytestmark = pytest.mark.skipif(pgbouncer.PROGRAM is None, reason="PgBouncer is not installed")

CODE = "pooler full"


@pytest.fixture
def server(private_server: EmbeddedServer) -> EmbeddedServer:
    """A server that tests of this module may stop; it runs again after each."""
    return private_server


@pytest.fixture(params=["console", "no console"])
def bouncer(request: pytest.FixtureRequest, server: EmbeddedServer) -> Iterator[PgBouncer]:
    """PgBouncer with two server connections, which lets the role use its console or not."""
    with PgBouncer(
        server, "transaction", default_pool_size=2, console=request.param == "console"
    ) as made:
        made.has_console = request.param == "console"  # type: ignore[attr-defined]
        yield made


@pytest.fixture
def alias(bouncer: PgBouncer, server: EmbeddedServer, make_database: MakeDatabase) -> str:
    """A database that leads through it."""
    made = make_database(server, max_size=3)
    connections.settings[made].update(HOST=bouncer.host, PORT=bouncer.port, USER="postgres")
    return made


@pytest.fixture
def probe(alias: str) -> Iterator[ServerProbe]:
    """What poolstats asks the database with."""
    made = ServerProbe(connections[alias])
    yield made
    made.close()


@contextmanager
def saturated(bouncer: PgBouncer) -> Iterator[None]:
    """Have both of its server connections in use."""
    with ExitStack() as stack:
        for _ in range(2):
            held = stack.enter_context(psycopg.connect(**bouncer.parameters("postgres")))
            held.execute("SELECT 1")
        yield


def look(probe: ServerProbe, patience: float = 1.5) -> ServerView:
    probe.start(patience)
    return probe.wait(patience)


def told(view: ServerView) -> list[tuple[Level, str | None, str]]:
    overview = Overview(Collection([]), [view])
    return [
        (found.level, found.kind, found.sentence)
        for found in findings.find(overview)
        if found.kind != "nothing"
    ]


def test_a_pooler_without_a_free_connection_is_told_from_a_server_that_does_not_answer(
    bouncer: PgBouncer, probe: ServerProbe
) -> None:
    with saturated(bouncer):
        view = look(probe)
        [(level, kind, sentence)] = told(view)
        assert (level, kind) == (Level.CRITICAL, CODE)
        if bouncer.has_console:  # type: ignore[attr-defined]
            assert view.queue is not None
            assert (view.queue.active, view.queue.pool_size) == (2, 2)
            words = "has no free server connection: all 2 are in use, 1 client waits, the longest"
            assert words in sentence
        else:
            assert "has no free server connection, as it seems: it lets clients in" in sentence
    wait_until(lambda: look(probe).error is None)
    view = look(probe)
    assert view.pooler
    assert [kind for _, kind, _ in told(view)] == ["pooler"]
    if bouncer.has_console:  # type: ignore[attr-defined]
        assert view.queue is not None
        assert view.queue.waiting == 0


@pytest.mark.parametrize("bouncer", ["no console"], indirect=True)
def test_a_question_that_waited_for_a_server_connection_tells_of_it(
    bouncer: PgBouncer, probe: ServerProbe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django_pooled.poolstats.server.view.WAIT_IN_POOLER", 0.1)
    with saturated(bouncer):
        probe.start(30.0)
        wait_until(lambda: probe._probe._connection)
        logged_in = monotonic()
        wait_until(lambda: monotonic() - logged_in > 3.0)
    view = probe.wait(30.0)
    assert view.error is None
    assert view.pooler_wait is not None
    assert view.pooler_wait > 1.0
    [(level, kind, sentence)] = [it for it in told(view) if it[1] != "pooler"]
    assert (level, kind) == (Level.CRITICAL, CODE)
    assert re.search(r"it lets clients in, and a query waited \d+[.]\d s for one[.]$", sentence)
    assert look(probe, 30.0).pooler_wait is None


@pytest.mark.parametrize("bouncer", ["console"], indirect=True)
def test_the_table_has_the_consoles_figures_and_no_number_that_was_made_up(
    bouncer: PgBouncer, alias: str, probe: ServerProbe
) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT 1")
        cursor.execute("SELECT pg_backend_pid()")
    pool: Any = connections[alias].pool  # type: ignore[attr-defined]
    connections[alias].close()
    overview = Overview(Collection([process_report([pool.snapshot()])]), [look(probe)])
    lines = as_table(overview, findings.find(overview))
    [line] = [line for line in lines if "in PgBouncer" in line]
    assert line.split(maxsplit=2)[2] == "0 of 2 in use, 1 idle; 0 clients wait"
    [figures] = overview.as_json()["processes"][0]["pools"][0]["connections"]
    assert figures["backend_pid"] is None


@pytest.mark.parametrize("bouncer", ["console"], indirect=True)
def test_a_pooler_that_cannot_connect_is_told_from_one_that_is_full(
    bouncer: PgBouncer, probe: ServerProbe, server: EmbeddedServer
) -> None:
    assert look(probe).error is None
    server.stop("immediate")
    try:
        wait_until(
            lambda: any("can't connect to its server" in one for _, _, one in told(look(probe)))
        )
    finally:
        server.start()


@pytest.mark.parametrize("bouncer", ["console"], indirect=True)
def test_a_pooler_that_is_frozen_itself_does_not_answer(
    bouncer: PgBouncer, probe: ServerProbe
) -> None:
    assert look(probe).error is None
    bouncer._process.send_signal(signal.SIGSTOP)
    try:
        [(level, kind, _)] = told(look(probe))
        assert (level, kind) == (Level.CRITICAL, "away")
    finally:
        bouncer._process.send_signal(signal.SIGCONT)


def test_statements_that_a_pooler_gave_up_are_counted_and_break_nothing_else(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    with PgBouncer(server, "transaction", default_pool_size=2, query_wait_timeout=1) as bouncer:
        alias = make_database(server, max_size=3)
        connections[alias].close()
        connections.settings[alias].update(HOST=bouncer.host, PORT=bouncer.port, USER="postgres")
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT 1")
            with saturated(bouncer), pytest.raises(OperationalError, match="query_wait_timeout"):
                cursor.execute("SELECT 2")
        connections[alias].close()
        pool: Any = connections[alias].pool  # type: ignore[attr-defined]
        snapshot = pool.snapshot()
        assert snapshot.counters.pooler_timeouts == 1
        overview = Overview(Collection([process_report([snapshot])]), [], seconds=10.0)
        [finding] = findings.find(overview)
        assert (finding.level, finding.kind) == (Level.CRITICAL, CODE)
        assert finding.sentence == (
            f'1 statement on "{alias}" failed in the last 10 s: its pooler had no free server '
            "connection (query_wait_timeout)."
        )

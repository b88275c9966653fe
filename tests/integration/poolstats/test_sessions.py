"""What poolstats learns from real servers, in real trouble, and through a real pooler."""

from __future__ import annotations

import contextlib
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING

import psycopg
import pytest
from django.db import connections

from django_pooled import registry
from django_pooled.poolstats.findings import overview_findings as findings
from django_pooled.poolstats.findings.finding import Level
from django_pooled.poolstats.overview import Overview
from django_pooled.poolstats.processes.collect import Collection
from django_pooled.poolstats.server.view import ServerProbe, ServerView
from django_pooled.stats.snapshot import process_report
from tests.servers import pgbouncer
from tests.support.threads import in_background
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django_pooled.poolstats.findings.finding import Kind
    from embedded_postgres import EmbeddedServer
    from tests.servers.postgresql import Servers
    from tests.support.pools import MakeDatabase

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sockets and signals of Unix")


@pytest.fixture(scope="module")
def server(servers: Servers) -> Iterator[EmbeddedServer]:
    """A server on which nobody else has sessions, since they are looked at."""
    made = servers.make()
    made.start()
    with psycopg.connect(**made.parameters("postgres")) as connection:
        connection.execute("CREATE TABLE tally (votes int)")
        connection.execute("INSERT INTO tally VALUES (0)")
    yield made
    servers.remove(made)


@pytest.fixture
def look(server: EmbeddedServer, make_database: MakeDatabase) -> Iterator[Callable[[], Overview]]:
    """Take a look at this process's own pool of a database, and at its server."""
    alias = make_database(server, max_size=2)
    probe = ServerProbe(connections[alias])

    def take() -> Overview:
        probe.start(10.0)
        seen = probe.wait(10.0)
        pools = [pool for pool in registry.snapshots() if pool.alias == alias]
        return Overview(Collection([process_report(pools)]), [seen])

    take.alias = alias  # type: ignore[attr-defined]
    yield take
    probe.close()


@contextlib.contextmanager
def in_a_thread(alias: str, statement: str, until: threading.Event) -> Iterator[None]:
    """Have a thread run a statement in a transaction, which stays open until it is told."""

    def work() -> None:
        try:
            wrapper = connections[alias]
            wrapper.set_autocommit(False)
            with wrapper.cursor() as cursor:
                cursor.execute(statement)
                until.wait(60.0)
            wrapper.rollback()
        finally:
            connections[alias].close()

    with in_background(work, until):
        yield


def kinds(look: Callable[[], Overview]) -> list[Kind | None]:
    return [finding.kind for finding in findings.find(look())]


def test_a_lock_is_told_with_who_waits_and_who_has_it(
    look: Callable[[], Overview], server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django_pooled.poolstats.findings.server_findings.LONG_BLOCK", 0.0)
    alias: str = look.alias  # type: ignore[attr-defined]
    until = threading.Event()
    update = "UPDATE tally SET votes = votes + 1"
    with psycopg.connect(**server.parameters("postgres"), application_name="psql") as holder:
        holder.execute(update)
        with in_a_thread(alias, update, until):
            wait_until(lambda: look().servers[0].blocked == 1)
            seen = look()
            (finding,) = [it for it in findings.find(seen) if it.kind == "blocked"]
            backend = holder.info.backend_pid
            holder.rollback()
    assert finding.trouble == "application"
    assert f', behind session {backend} ("psql"), idle in transaction for ' in finding.sentence
    (group,) = seen.groups
    (connection,) = [it for it in group.rows[0].pool.connections if it["state"] == "in use"]
    session = seen.session(group.rows[0], connection)
    assert session is not None
    assert session.is_blocked
    assert session.blocked_by == [backend]
    assert seen.owner(connection["backend_pid"]) == (group.rows[0], connection)


def test_a_transaction_that_stays_open_is_found_with_its_connection(
    look: Callable[[], Overview], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django_pooled.poolstats.findings.server_findings.LONG_TRANSACTION", 0.0)
    alias: str = look.alias  # type: ignore[attr-defined]
    until = threading.Event()
    with in_a_thread(alias, "SELECT 1", until):
        wait_until(partial(lambda: "idle in transaction" in kinds(look)))
        (finding,) = [it for it in findings.find(look()) if it.kind == "idle in transaction"]
    assert finding.level is Level.WARNING
    # Who it is: this process, and the line that checked the connection out.
    assert "in process " in finding.sentence
    assert " by " in finding.sentence


def test_a_pool_whose_transactions_stay_open_is_diagnosed(
    look: Callable[[], Overview], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django_pooled.poolstats.findings.diagnosis.LONG", 0.0)
    alias: str = look.alias  # type: ignore[attr-defined]
    until = threading.Event()
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(in_a_thread(alias, "SELECT 1", until))
        wait_until(lambda: "waiting" in kinds(look) and look().groups[0].sum("waiting") == 1)
        wait_until(lambda: look().servers[0].states.get("idle in transaction") == 2)
        (finding,) = [it for it in findings.find(look()) if it.kind == "waiting"]
        until.set()
    assert finding.trouble == "application"
    assert "all 2 connections are in use, the longest for " in finding.sentence
    assert "all 2 sessions are idle in a transaction" in finding.sentence


def test_the_text_of_queries_is_not_asked_for(
    look: Callable[[], Overview], server: EmbeddedServer
) -> None:
    with psycopg.connect(**server.parameters("postgres")) as connection:
        connection.execute("SELECT 's3cret'")
        seen = look()
        assert seen.servers[0].used >= 1
        assert "s3cret" not in repr(seen.servers)


@pytest.mark.skipif(pgbouncer.PROGRAM is None, reason="needs PgBouncer")
def test_a_pooler_in_between_is_noticed(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    with pgbouncer.PgBouncer(server, "transaction") as bouncer:
        alias = make_database(server)
        connections.settings[alias].update(HOST=bouncer.host, PORT=bouncer.port)
        probe = ServerProbe(connections[alias])
        probe.start(10.0)
        seen = probe.wait(10.0)
        probe.close()
    assert seen.error is None
    assert seen.pooler
    assert seen.session(seen.sessions[0].pid if seen.sessions else 0) is None


def test_without_a_pooler_none_is_suspected(look: Callable[[], Overview]) -> None:
    assert not look().servers[0].pooler


def test_a_server_that_is_not_answering_has_no_sessions() -> None:
    assert ServerView("default", error="refused").session(1) is None

"""Who holds the connections of a server that is full, when the look begins in the middle of it."""

from __future__ import annotations

import subprocess
import sys
import threading
import urllib.request
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from django.db import connections

from django_pooled.errors import CheckoutTimeout
from django_pooled.pool.server_sessions import ServerSessions, ask_sessions
from django_pooled.poolstats.findings import overview_findings as findings
from django_pooled.poolstats.findings.finding import Level
from django_pooled.poolstats.overview import Overview
from django_pooled.poolstats.processes.collect import Collection
from django_pooled.poolstats.server.view import ServerProbe
from django_pooled.poolstats.tables.overview_table import as_table
from django_pooled.stats.snapshot import process_report
from tests.servers.postgresql import versions
from tests.sites.dashboard import running
from tests.sites.workers.running import ROOT
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django_pooled.pool.connection import PooledConnection
    from django_pooled.pool.pool import Pool
    from embedded_postgres import EmbeddedServer
    from tests.support.pools import MakeDatabase

PASSWORD = "only for tests"
SETTINGS = {"max_connections": "14", "superuser_reserved_connections": "2"}


@pytest.fixture(params=versions(), ids=lambda version: f"postgresql{version}")
def server(
    request: pytest.FixtureRequest, make_server: Callable[..., EmbeddedServer]
) -> EmbeddedServer:
    """A server with room for twelve, from PostgreSQL 16 on for nine."""
    reserved = {"reserved_connections": "3"} if int(request.param) >= 16 else {}
    made = make_server(request.param, settings={**SETTINGS, **reserved})
    with psycopg.connect(**made.parameters("postgres"), autocommit=True) as admin:
        admin.execute(f"CREATE ROLE clerk LOGIN PASSWORD '{PASSWORD}'")
    return made


@contextmanager
def full(server: EmbeddedServer, **parameters: Any) -> Iterator[int]:
    """Have all of its room taken by another program; tell how many sessions that has."""
    login = {**server.parameters("postgres"), "user": "clerk", "password": PASSWORD, **parameters}
    with ExitStack() as stack:
        number = 0
        try:
            while True:
                session = psycopg.connect(**login, application_name="nightly batch")
                stack.enter_context(session)
                number += 1
        except psycopg.OperationalError:
            yield number


@pytest.fixture
def alias(server: EmbeddedServer, make_database: MakeDatabase) -> str:
    made = make_database(server, max_size=4, timeout=1.0)
    connections.settings[made].update(USER="clerk", PASSWORD=PASSWORD)
    return made


@pytest.fixture
def pool(alias: str) -> Pool:
    """Its pool, with two connections."""
    found: Pool = connections[alias].pool  # type: ignore[attr-defined]
    for connection in [found.checkout() for _ in range(2)]:
        found.checkin(connection)
    return found


def look(alias: str, pool: Pool) -> Overview:
    """Look as a command does that has just been started."""
    probe = ServerProbe(connections[alias])
    probe.start(5.0)
    view = probe.wait(5.0)
    probe.close()
    return Overview(Collection([process_report([pool.snapshot()])]), [view])


def test_a_process_of_the_site_tells_who_holds_the_connections(
    server: EmbeddedServer, alias: str, pool: Pool
) -> None:
    with full(server) as others:
        assert look(alias, pool).servers[0].is_full
        pool.look_at_server(5.0)
        seen = look(alias, pool)
    [view] = seen.servers
    assert view.max_connections == 14
    assert view.used == others + 2 == 14 - view.reserved
    assert view.others["nightly batch"] == others
    finding = findings.find(seen)[0]
    assert finding.level is Level.CRITICAL
    assert finding.sentence.startswith(
        f'The database "{alias}" is full (53300): {others + 2} of 14 connections are used and '
        f'{view.reserved} reserved, {others} by "nightly batch", 2 by processes on '
    )
    table = "\n".join(as_table(seen, [finding]))
    assert f"{others} nightly batch" in table
    assert seen.as_json()["server"][alias]["sessions"]["nightly batch"] == others


def test_a_pool_that_is_refused_looks_by_itself_once_one_comes_back(
    server: EmbeddedServer, pool: Pool
) -> None:
    held = [pool.checkout() for _ in range(2)]
    with full(server) as others:
        assert pool.snapshot().sessions_age is None
        with pytest.raises(CheckoutTimeout, match="slots are reserved"):
            pool.checkout()
        pool.look_at_server()
        # All are in use, and nobody asked it to wait for one.
        assert pool.snapshot().sessions_age is None
        for connection in held:
            pool.checkin(connection)
        pool.look_at_server()
        assert pool.snapshot().sessions["nightly batch"] == others


def test_a_reader_waits_its_turn_for_a_connection_and_not_for_ever(
    server: EmbeddedServer, pool: Pool
) -> None:
    held = [pool.checkout() for _ in range(2)]
    with full(server) as others:
        pool.look_at_server(0.2)
        assert pool.snapshot().sessions_age is None
        asker = threading.Thread(target=pool.look_at_server, args=[30.0])
        asker.start()
        wait_until(lambda: pool.gauges().waiting == 1)
        for connection in held:
            pool.checkin(connection)
        asker.join()
        assert pool.snapshot().sessions["nightly batch"] == others
    assert pool.snapshot().counters.timeouts == 0


def test_a_reader_never_takes_the_last_place_of_the_queue(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server, max_size=1, max_waiting=1)
    pool: Pool = connections[alias].pool  # type: ignore[attr-defined]
    connection = pool.checkout()
    pool.look_at_server(60.0)
    assert pool.snapshot().sessions_age is None
    pool.checkin(connection)
    pool.look_at_server(60.0)
    assert pool.snapshot().sessions_age is not None


def test_a_look_is_no_holder_of_the_sites(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str | None] = []

    def ask(connection: PooledConnection) -> ServerSessions:
        seen.extend(it["by"] for it in pool.snapshot().connections if it["state"] == "in use")
        return ask_sessions(connection)

    monkeypatch.setattr("django_pooled.pool.probes.ask_sessions", ask)
    pool.look_at_server(30.0)
    assert seen == ["django_pooled"]


def test_a_pool_with_room_is_not_looked_at_unless_asked(pool: Pool) -> None:
    before = pool.snapshot().counters.checkouts
    pool.look_at_server()
    assert pool.snapshot().sessions_age is None
    assert pool.snapshot().counters.checkouts == before


def test_the_command_started_amid_it_names_the_other_program(
    make_server: Callable[..., EmbeddedServer],
) -> None:
    server = make_server(settings={**SETTINGS, "max_connections": "16"})
    with running.database(server, "site") as url, ExitStack() as stack:
        with psycopg.connect(**server.parameters("site"), autocommit=True) as admin:
            admin.execute(f"CREATE ROLE clerk LOGIN PASSWORD '{PASSWORD.replace(' ', '')}'")
        login = f"clerk:{PASSWORD.replace(' ', '')}@"
        url = f"postgres://{login}{url.partition('@')[2]}"
        site = stack.enter_context(running.serving(url))
        urllib.request.urlopen(f"{site.address}/hold/0").close()
        with full(server, password=PASSWORD.replace(" ", ""), dbname="site") as others:
            env = running.environment(url, stats_dir=str(site.stats_dir))
            command = [sys.executable, "-m", "django", "poolstats", "--check"]

            def told() -> subprocess.CompletedProcess[str]:
                return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)

            named = f'{others} by "nightly batch"'
            # No connection is ever idle, and threads wait for each.
            with site.load("/hold/0.1", clients=8):
                wait_until(lambda: named in told().stdout)
            alone = told()
    assert alone.returncode == 2
    assert named in alone.stdout

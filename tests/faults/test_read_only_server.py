"""Settings that lead to a standby, and a server that is demoted: what each view says, and when."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from django.db import InternalError, connections
from django.test import RequestFactory

from django_pooled.base import DatabaseWrapper
from django_pooled.health import readiness
from django_pooled.poolstats.findings import overview_findings as findings
from django_pooled.poolstats.findings.finding import Level
from django_pooled.poolstats.overview import Overview
from django_pooled.poolstats.processes.collect import Collection
from django_pooled.stats.snapshot import process_report
from tests.servers.postgresql import versions
from tests.support.logs import logged
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from django_pooled.pool.pool import Pool
    from embedded_postgres import EmbeddedServer
    from tests.servers.fault_proxy import FaultProxy
    from tests.support.pools import MakeDatabase, MakePool

    MakeServer = Callable[..., EmbeddedServer]
    Pair = tuple[EmbeddedServer, EmbeddedServer]

OFTEN = {"initial": 0.05, "maximum": 0.1, "jitter": False}
SELDOM = {"initial": 600.0, "maximum": 600.0, "jitter": False}


@pytest.fixture
def pair(make_server: MakeServer) -> Pair:
    """A primary and its standby."""
    primary = make_server(versions()[-1])
    return primary, make_server(primary=primary)


def execute(server: EmbeddedServer, statement: str) -> Any:
    with psycopg.connect(**server.parameters(), autocommit=True) as connection:
        row = connection.execute(statement).fetchone()
        return row[0] if row else None


def write(alias: str) -> bool:
    """Write in one request; tell whether the server let it."""
    try:
        with connections[alias].cursor() as cursor:
            cursor.execute("CREATE TABLE IF NOT EXISTS written (n int)")
    except InternalError:
        return False
    finally:
        connections[alias].close()
    return True


def read(alias: str) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT 1")
    connections[alias].close()


def pool_of(alias: str) -> Pool:
    wrapper = connections[alias]
    assert isinstance(wrapper, DatabaseWrapper)
    assert wrapper.pool is not None
    return wrapper.pool


def probe(alias: str) -> tuple[int, str]:
    """Ask the view for readiness, without an answer that it has kept."""
    pool_of(alias)._readiness._check = None
    response = readiness(RequestFactory().get("/"), using=alias, timeout=5.0)
    return response.status_code, json.loads(response.content)["databases"][alias]


def told(alias: str) -> list[tuple[Level, str | None, str]]:
    """Return what poolstats says of the process's pool: level, kind and sentence."""
    look = Overview(Collection([process_report([pool_of(alias).snapshot()])]), [])
    return [(found.level, found.kind, found.sentence) for found in findings.find(look)]


def test_settings_that_lead_to_a_standby_are_named_from_the_first_refused_write_on(
    pair: Pair, make_database: MakeDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    _, standby = pair
    alias = make_database(standby, max_size=3, backoff=SELDOM)
    read(alias)
    assert told(alias) == []
    assert probe(alias) == (200, "ready")
    with caplog.at_level(logging.INFO, "django_pooled.pool"):
        for _ in range(20):
            assert not write(alias)
            read(alias)
    place = f"127.0.0.1:{standby.port}"
    sentence = f'"{alias}": {place} is a read-only standby: writes fail (25006).'
    assert told(alias) == [(Level.CRITICAL, "read only", sentence)]
    assert probe(alias) == (200, "read-only")
    counters = pool_of(alias).snapshot().counters
    assert counters.refused_writes == 20
    # The first one, what took its place, and one more to see where the address leads.
    assert counters.connects <= 3
    assert counters.closed["error"] == 0
    assert len(logged(caplog, "server_read_only")) == 1
    assert logged(caplog, "not_ready") == []


def test_a_standby_that_is_promoted_is_said_once_to_write_again(
    pair: Pair, make_database: MakeDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    _, standby = pair
    alias = make_database(standby, max_size=3, backoff=OFTEN)
    with caplog.at_level(logging.INFO, "django_pooled.pool"):
        assert not write(alias)
        assert execute(standby, "SELECT pg_promote()") is True
        wait_until(lambda: write(alias))
        for _ in range(5):
            assert write(alias)
    assert told(alias) == []
    assert probe(alias) == (200, "ready")
    [line] = logged(caplog, "server_writable")
    assert f"127.0.0.1:{standby.port} can write again after " in line


def test_a_site_that_has_to_write_is_not_ready_at_a_standby_before_any_write(
    pair: Pair, make_database: MakeDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    _, standby = pair
    alias = make_database(standby, max_size=5, read_only=False, backoff=SELDOM)
    with caplog.at_level(logging.INFO, "django_pooled.pool"):
        for _ in range(5):
            assert probe(alias) == (503, "cannot write")
    [(level, kind, sentence)] = told(alias)
    assert (level, kind) == (Level.CRITICAL, "read only")
    assert f"127.0.0.1:{standby.port} is a read-only standby" in sentence
    assert pool_of(alias).snapshot().counters.refused_writes == 0
    assert len(logged(caplog, "not_ready")) == 1
    assert len(logged(caplog, "server_read_only")) == 1
    assert execute(standby, "SELECT pg_promote()") is True
    wait_until(lambda: probe(alias) == (200, "ready"))
    assert told(alias) == []


@pytest.mark.parametrize("read_only", [None, False])
def test_without_any_request_probes_find_the_server_that_took_over(
    pair: Pair,
    make_database: MakeDatabase,
    make_proxy: Callable[[EmbeddedServer], FaultProxy],
    read_only: bool | None,
) -> None:
    primary, standby = pair
    proxy = make_proxy(standby)
    alias = make_database(standby, through=proxy, max_size=3, read_only=read_only, backoff=OFTEN)
    assert not write(alias)
    assert probe(alias)[1] in ("read-only", "cannot write")
    proxy.retarget(primary.host, primary.port)
    wait_until(lambda: probe(alias) == (200, "ready"))
    assert write(alias)


def test_a_replica_that_is_declared_loses_nothing_by_a_stray_write(
    pair: Pair, make_database: MakeDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    alias = make_database(pair[1], max_size=2, read_only=True)
    with caplog.at_level(logging.INFO, "django_pooled.pool"):
        for _ in range(3):
            assert not write(alias)
    assert told(alias) == []
    assert probe(alias) == (200, "ready")
    counters = pool_of(alias).snapshot().counters
    assert (counters.connects, counters.refused_writes) == (1, 3)
    assert caplog.records == []


def test_a_demoted_host_of_several_is_forgotten_once_no_connection_leads_there(
    pair: Pair, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    primary, standby = pair
    parameters = {
        "host": f"{primary.host},{standby.host}",
        "port": f"{primary.port},{standby.port}",
        "target_session_attrs": "read-write",
    }
    pool = make_pool(primary, parameters=parameters, max_size=2, backoff=OFTEN)
    held = [pool.checkout() for _ in range(2)]
    for connection in held:
        pool.checkin(connection)

    def write_to() -> int | None:
        connection = pool.checkout()
        try:
            connection.execute("SELECT 1")  # With its answer the server tells of its settings.
            connection.execute("CREATE TABLE IF NOT EXISTS written (n int)")
        except psycopg.errors.ReadOnlySqlTransaction as error:
            pool.note_error(connection, error)
            return None
        else:
            return connection.info.port
        finally:
            pool.checkin(connection)

    assert write_to() == primary.port
    execute(standby, "SELECT pg_promote()")
    with psycopg.connect(**primary.parameters(), autocommit=True) as admin:
        admin.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        admin.execute("SELECT pg_reload_conf()")
    with caplog.at_level(logging.WARNING, "django_pooled.pool"):
        wait_until(lambda: write_to() is None)
        assert pool.snapshot().read_only == f"127.0.0.1:{primary.port} is read-only"
        wait_until(lambda: write_to() == standby.port)
    assert pool.snapshot().read_only is None
    assert len(logged(caplog, "server_read_only")) == 1
    [line] = logged(caplog, "server_writable")
    assert f"127.0.0.1:{standby.port} can write, and none is left to " in line
    assert f"127.0.0.1:{primary.port}, which was read-only, after " in line

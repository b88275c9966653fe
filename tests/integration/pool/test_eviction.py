from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tests.support.logs import logged
from tests.support.pools import fill
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from django_pooled.pool.connection import PooledConnection
    from django_pooled.pool.pool import Pool
    from embedded_postgres import EmbeddedServer
    from tests.servers.fault_proxy import FaultProxy
    from tests.support.pools import MakePool

STEADY = {"initial": 60.0, "maximum": 60.0, "jitter": False}
"""A backoff by which a second look would come long after the test."""


def execute(server: EmbeddedServer, *statements: str) -> None:
    with psycopg.connect(**server.parameters("postgres"), autocommit=True) as admin:
        for statement in statements:
            admin.execute(statement)


def let_write(server: EmbeddedServer, may: bool) -> None:
    value = "off" if may else "on"
    execute(
        server,
        f"ALTER SYSTEM SET default_transaction_read_only = {value}",
        "SELECT pg_reload_conf()",
    )
    shown = "SHOW default_transaction_read_only"

    def has_changed() -> bool:
        with psycopg.connect(**server.parameters("postgres")) as admin:
            return admin.execute(shown).fetchone() == (value,)

    wait_until(has_changed)


def write(pool: Pool) -> bool:
    """Write in one checkout, as a request does; tell whether the server let it."""
    connection = pool.checkout()
    try:
        # What the server has reported of its settings comes with an answer.
        connection.execute("SELECT 1")
        connection.execute("CREATE TABLE IF NOT EXISTS written (n int)")
    except psycopg.errors.ReadOnlySqlTransaction as error:
        pool.note_error(connection, error)
        return False
    finally:
        pool.checkin(connection)
    return True


def connects(pool: Pool) -> int:
    return pool.snapshot().counters.connects


def test_a_server_that_stays_read_only_loses_its_connections_once(
    own_server: EmbeddedServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool(own_server, max_size=4, backoff=STEADY)
    fill(pool, 4)
    let_write(own_server, False)
    with caplog.at_level(logging.WARNING, "django_pooled.pool"):
        assert not write(pool)
        assert pool.gauges().idle == 0
        # One more leaves, to see whether the address leads elsewhere; the next after a minute.
        for _ in range(30):
            assert not write(pool)
    assert connects(pool) <= 4 + 3
    place = f"127.0.0.1:{own_server.port}"
    assert logged(caplog, "server_read_only") == [
        f"pool 'default': {place} is read-only; its connections are closed"
    ]


def test_while_a_server_stays_read_only_one_connection_at_a_time_is_replaced(
    own_server: EmbeddedServer, make_pool: MakePool
) -> None:
    backoff = {"initial": 0.25, "maximum": 0.25, "jitter": False}
    pool = make_pool(own_server, max_size=4, backoff=backoff)
    fill(pool, 4)
    let_write(own_server, False)
    assert not write(pool)
    before, began = connects(pool), time.monotonic()
    while time.monotonic() < began + 4.0:
        assert not write(pool)
    # At once, and after 0.25, 0.5, 1 and 2 seconds; and what was opened in place of the first.
    assert 3 <= connects(pool) - before <= 7


def test_connections_that_reach_the_new_server_make_the_old_one_s_leave_together(
    own_server: EmbeddedServer,
    server: EmbeddedServer,
    make_proxy: Callable[[EmbeddedServer], FaultProxy],
    make_pool: MakePool,
) -> None:
    clerk = {"user": "clerk", "password": "the same on both"}
    for each in (own_server, server):
        execute(each, f"CREATE ROLE clerk LOGIN SUPERUSER PASSWORD '{clerk['password']}'")
    proxy = make_proxy(own_server)
    backoff = {"initial": 0.1, "maximum": 0.1}
    pool = make_pool(own_server, through=proxy, max_size=4, parameters=clerk, backoff=backoff)
    fill(pool, 4)
    let_write(own_server, False)
    assert not write(pool)
    # The address still leads to the old server, when the pool fills again.
    fill(pool, 4)
    assert not write(pool)
    proxy.retarget(server.host, server.port)
    wait_until(lambda: write(pool))
    held = [pool.checkout() for _ in range(4)]
    ports = [connection.execute("SHOW port").fetchone() for connection in held]
    for connection in held:
        pool.checkin(connection)
    assert ports == [(str(server.port),)] * 4
    pool.close()
    execute(server, "DROP TABLE written", "DROP ROLE clerk")


def test_a_server_that_can_write_again_and_turns_read_only_again_loses_them_again(
    own_server: EmbeddedServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    backoff = {"initial": 0.1, "maximum": 0.1, "jitter": False}
    pool = make_pool(own_server, max_size=1, backoff=backoff)
    with caplog.at_level(logging.WARNING, "django_pooled.pool"):
        for _ in range(2):
            let_write(own_server, False)
            wait_until(lambda: not write(pool))
            let_write(own_server, True)
            wait_until(lambda: write(pool))
            assert write(pool)  # The server tells with an answer, which the next use looks at.
            time.sleep(2.0)  # a drain of one connection counts for as long
    assert len(logged(caplog, "server_read_only")) == 2
    ends = logged(caplog, "server_writable")
    assert len(ends) == 2
    for line in ends:
        assert f"127.0.0.1:{own_server.port} can write again after " in line


def test_only_a_drain_that_would_come_too_soon_is_left_out(
    own_server: EmbeddedServer, make_pool: MakePool
) -> None:
    backoff = {"initial": 0.1, "maximum": 0.1, "jitter": False}
    pool = make_pool(own_server, max_size=3, backoff=backoff)
    fill(pool, 3)
    let_write(own_server, False)
    assert not write(pool)
    let_write(own_server, True)
    wait_until(lambda: write(pool))
    fill(pool, 3)
    let_write(own_server, False)
    before = connects(pool)
    assert not write(pool)
    # Of three, the one that has found it out.
    wait_until(lambda: connects(pool) == before + 1 and pool.gauges().idle == 3)


# Prepared statements that no longer fit.

SELECT = "SELECT * FROM letters"


@pytest.fixture
def two_shapes(own_server: EmbeddedServer) -> None:
    """Two tables of one name, in two schemas."""
    execute(
        own_server,
        "CREATE SCHEMA one",
        "CREATE SCHEMA two",
        "CREATE TABLE one.letters (letter text)",
        "CREATE TABLE two.letters (letter text, place int)",
    )


def read_as(pool: Pool, schema: str, statement: str = SELECT) -> bool:
    """Read with that schema in front; tell whether the prepared statement fitted."""
    connection = pool.checkout()
    try:
        connection.execute(f"SET search_path TO {schema}", prepare=False)
        connection.execute(statement)
    except psycopg.errors.FeatureNotSupported as error:
        pool.note_error(connection, error)
        return False
    finally:
        pool.checkin(connection)
    return True


def test_a_plan_that_becomes_stale_again_and_again_costs_no_connection_each_time(
    own_server: EmbeddedServer, make_pool: MakePool, two_shapes: None
) -> None:
    def configure(connection: PooledConnection) -> None:
        connection.prepare_threshold = 0

    pool = make_pool(own_server, max_size=3, configure=configure)
    fill(pool, 3)
    fitted = [read_as(pool, "one" if turn % 2 else "two") for turn in range(40)]
    # Prepared anew after the first failure, and on a connection of its own after that no more.
    assert fitted.count(False) <= 1 + 3
    assert connects(pool) <= 3 + 3
    assert fitted[-10:] == [True] * 10


def test_a_second_error_on_a_connection_that_had_to_leave_drains_nothing(
    own_server: EmbeddedServer, make_pool: MakePool, two_shapes: None
) -> None:
    def configure(connection: PooledConnection) -> None:
        connection.prepare_threshold = 0
        connection.execute("SET search_path TO one")
        connection.execute(SELECT)

    pool = make_pool(own_server, max_size=3, configure=configure)
    held = [pool.checkout() for _ in range(2)]
    execute(own_server, "ALTER TABLE one.letters ADD COLUMN place int")
    errors: list[Any] = []
    for connection in held:
        with pytest.raises(psycopg.errors.FeatureNotSupported) as stale:
            connection.execute(SELECT)
        errors.append(stale.value)
    pool.note_error(held[0], errors[0])
    pool.checkin(held[0])
    young = pool.checkout()
    pool.note_error(held[1], errors[1])
    pool.checkin(held[1])
    pool.checkin(young)
    assert pool.gauges().idle == 1
    assert pool.snapshot().counters.closed["error"] == 2

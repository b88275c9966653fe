"""What one user of a connection leaves to the next, and what nobody ever gets to see."""

from __future__ import annotations

import io
import itertools
import json
import logging
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from django.core.management import call_command
from django.db import OperationalError, connections
from django.db.transaction import atomic
from psycopg import sql

from django_pooled import registry, retry_transaction
from django_pooled.errors import CheckoutTimeout, ConnectFailed
from django_pooled.stats import publisher
from django_pooled.stats.snapshot import process_report
from django_pooled.testing import fail_next_transaction
from tests.servers.postgresql import backend_count, backend_pids, versions
from tests.support.pools import fill, query
from tests.support.threads import at_once
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from django_pooled.pool.pool import Pool
    from embedded_postgres import EmbeddedServer
    from tests.servers.fault_proxy import FaultProxy
    from tests.servers.postgresql import Servers
    from tests.support.pools import MakeDatabase, MakePool

STATE = """
    SELECT current_setting('TimeZone'),
           current_setting('statement_timeout'),
           current_setting('search_path'),
           current_user::text,
           session_user::text,
           to_regclass('pg_temp.scratch') IS NOT NULL,
           (SELECT count(*) FROM pg_locks
             WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
           (SELECT count(*) FROM pg_listening_channels()),
           (SELECT count(*) FROM pg_cursors WHERE is_holdable),
           (SELECT count(*) FROM pg_prepared_statements WHERE from_sql)
"""
MESS = (
    "SET TimeZone TO 'Asia/Tokyo'",
    "SET statement_timeout TO '77s'",
    "SET search_path TO pg_catalog",
    "SET ROLE hygiene_other",
    "CREATE TEMPORARY TABLE scratch (x int)",
    "SELECT pg_advisory_lock(4711)",
    "LISTEN news",
    "DECLARE reader CURSOR WITH HOLD FOR SELECT 1",
    "PREPARE question AS SELECT 1",
)
CLEAN = ("UTC", "0", '"$user", public', "hygiene_owner", "postgres", False, 0, 0, 0, 0)
MESSY = ("Asia/Tokyo", "77s", "pg_catalog", "hygiene_other", "postgres", True, 1, 1, 1, 1)
MESSY_BUT_FOR_ITS_ROLE = (*MESSY[:3], "hygiene_owner", *MESSY[4:])


@pytest.fixture(scope="module", params=versions(), ids=lambda version: f"postgresql{version}")
def roles(request: pytest.FixtureRequest, servers: Servers) -> Iterator[EmbeddedServer]:
    """A server with the roles that a session can assume, once of the oldest and newest version."""
    made = servers.make(request.param)
    made.start()
    for role in ("hygiene_owner", "hygiene_other"):
        execute(made, f"CREATE ROLE {role}")
        execute(made, f"GRANT {role} TO postgres")
    execute(made, "GRANT TEMPORARY ON DATABASE postgres TO hygiene_other")
    yield made
    servers.remove(made)


def execute(server: EmbeddedServer, statement: str) -> None:
    with psycopg.connect(**server.parameters(), autocommit=True) as connection:
        connection.execute(statement)


def ask(alias: str, statement: str) -> tuple[Any, ...]:
    with connections[alias].cursor() as cursor:
        cursor.execute(statement)
        row: tuple[Any, ...] = cursor.fetchone()
        return row


def make_a_mess(alias: str) -> None:
    with connections[alias].cursor() as cursor:
        for statement in MESS:
            cursor.execute(statement)


def pool_of(alias: str) -> Pool:
    pool = connections[alias].pool  # type: ignore[attr-defined]
    assert pool is not None
    found: Pool = pool
    return found


# What is left behind.


@pytest.mark.parametrize("reset", ["auto", "discard"])
def test_the_next_user_finds_a_connection_like_new(
    roles: EmbeddedServer, make_database: MakeDatabase, reset: str
) -> None:
    alias = make_database(roles, options={"assume_role": "hygiene_owner"}, max_size=1, reset=reset)
    backend = ask(alias, "SELECT pg_backend_pid()")
    assert ask(alias, STATE) == CLEAN
    make_a_mess(alias)
    assert ask(alias, STATE) == MESSY
    connections[alias].close()
    assert ask(alias, STATE) == CLEAN
    assert ask(alias, "SELECT pg_backend_pid()") == backend


@pytest.mark.parametrize("reset", ["auto", "discard"])
def test_no_lock_is_held_and_nothing_heard_while_the_connection_is_idle(
    roles: EmbeddedServer, make_database: MakeDatabase, reset: str
) -> None:
    alias = make_database(roles, max_size=1, reset=reset)
    make_a_mess(alias)
    connections[alias].close()
    other = make_database(roles, max_size=1)
    # The lock would be refused if the idle session still had it.
    assert ask(other, "SELECT pg_try_advisory_lock(4711), pg_advisory_unlock(4711)") == (True, True)


def test_with_reset_rollback_session_state_stays_for_the_next_user(
    roles: EmbeddedServer, make_database: MakeDatabase
) -> None:
    # As with Django's own persistent connections and PgBouncer's session mode without
    # server_reset_query, but for the role, which decides what a request may do.
    alias = make_database(
        roles, options={"assume_role": "hygiene_owner"}, max_size=1, reset="rollback"
    )
    make_a_mess(alias)
    connections[alias].close()
    assert ask(alias, STATE) == MESSY_BUT_FOR_ITS_ROLE


@pytest.mark.parametrize("reset", ["auto", "rollback", "discard"])
def test_what_is_set_for_one_transaction_ends_with_it(
    roles: EmbeddedServer, make_database: MakeDatabase, reset: str
) -> None:
    alias = make_database(roles, options={"assume_role": "hygiene_owner"}, max_size=1, reset=reset)
    with atomic(using=alias):
        for statement in ("SET LOCAL statement_timeout TO '77s'", "SET LOCAL ROLE hygiene_other"):
            with connections[alias].cursor() as cursor:
                cursor.execute(statement)
        ask(alias, "SELECT pg_advisory_xact_lock(4711)")
    connections[alias].close()
    assert ask(alias, STATE) == CLEAN


@pytest.mark.parametrize("reset", ["auto", "rollback", "discard"])
def test_a_connection_returned_in_a_transaction_is_rolled_back(
    roles: EmbeddedServer, make_database: MakeDatabase, reset: str
) -> None:
    execute(roles, "DROP TABLE IF EXISTS letters")
    execute(roles, "CREATE TABLE letters (letter text)")
    alias = make_database(roles, max_size=1, reset=reset)
    backend = ask(alias, "SELECT pg_backend_pid()")
    wrapper = connections[alias]
    wrapper.set_autocommit(False)
    with wrapper.cursor() as cursor:
        cursor.execute("INSERT INTO letters VALUES ('a')")
    wrapper.close()
    assert backend_count(roles, "postgres", state="idle in transaction") == 0
    assert ask(alias, "SELECT count(*) FROM letters") == (0,)
    assert ask(alias, "SELECT pg_backend_pid()") == backend


def test_a_connection_returned_in_an_aborted_transaction_is_kept_and_usable(
    roles: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(roles, max_size=1)
    connection = pool.checkout()
    connection.autocommit = False
    with pytest.raises(psycopg.errors.DivisionByZero):
        connection.execute("SELECT 1/0")
    pool.checkin(connection)
    assert query(pool) == 42
    assert pool.snapshot().counters.connects == 1


def test_a_connection_returned_amid_a_query_is_closed(
    roles: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(roles, max_size=1)
    connection = pool.checkout()
    connection.pgconn.send_query(b"SELECT pg_sleep(60)")
    pool.checkin(connection)
    assert connection.closed
    assert query(pool) == 42


def test_prepared_statements_work_on_after_reset_discard_has_dropped_them(
    roles: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(roles, options={"prepare_threshold": 0}, max_size=1, reset="discard")
    for _ in range(3):
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT %s::int", [42])
            assert cursor.fetchone() == (42,)
        connections[alias].close()
    assert pool_of(alias).snapshot().counters.connects == 1


def test_a_reset_that_fails_costs_the_connection_and_no_request(
    roles: EmbeddedServer, make_database: MakeDatabase
) -> None:
    execute(roles, "DROP ROLE IF EXISTS hygiene_gone")
    execute(roles, "CREATE ROLE hygiene_gone")
    alias = make_database(
        roles, options={"assume_role": "hygiene_gone"}, max_size=1, reset="discard"
    )
    ask(alias, "SELECT 1")
    execute(roles, "DROP ROLE hygiene_gone")
    connections[alias].close()
    assert pool_of(alias).snapshot().counters.discarded == 1
    with pytest.raises(ConnectFailed, match="hygiene_gone"):
        ask(alias, "SELECT 1")
    execute(roles, "CREATE ROLE hygiene_gone")
    assert wait_until(lambda: ask(alias, "SELECT 1")) == (1,)


# Size and age.


def test_max_idle_shrinks_the_pool_to_min_size(server: EmbeddedServer, make_pool: MakePool) -> None:
    # One connection goes in each interval of max_idle in which it was not needed.
    pool = make_pool(server, min_size=1, max_size=4, max_idle=0.2)
    fill(pool, 4)
    sizes = [4]

    def shrunk() -> bool:
        if pool.gauges().size != sizes[-1]:
            sizes.append(pool.gauges().size)
        return sizes[-1] == 1

    wait_until(shrunk)
    assert sizes == [4, 3, 2, 1]
    time.sleep(0.5)  # Two more intervals, in which nothing more goes.
    assert pool.gauges().size == 1
    assert query(pool) == 42


def test_max_idle_lets_go_only_what_a_steady_load_does_not_need(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, min_size=0, max_size=4, max_idle=0.3)
    fill(pool, 4)
    until = time.monotonic() + 2.5
    least = 4
    while time.monotonic() < until:
        held = [pool.checkout() for _ in range(2)]
        least = min(least, pool.gauges().size)
        for connection in held:
            pool.checkin(connection)
        time.sleep(0.01)
    assert least == 2
    assert pool.snapshot().counters.connects == 4


def test_connections_opened_together_do_not_expire_together(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, max_size=16, max_lifetime=1000.0)
    held = [pool.checkout() for _ in range(16)]
    ages = sorted(one.session.expires_at - one.session.opened_at for one in held)
    for one in held:
        pool.checkin(one)
    assert 900.0 <= ages[0] < ages[-1] <= 1000.0
    # Sixteen at random out of a hundred seconds: closer together than this once in a million.
    assert ages[-1] - ages[0] > 30.0
    assert max(later - sooner for sooner, later in itertools.pairwise(ages)) < 80.0


def test_a_pool_outlives_the_lifetime_of_all_its_connections_without_an_error(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, max_size=4, max_lifetime=0.2)
    until = time.monotonic() + 2.0
    errors: list[Exception] = []

    def work() -> None:
        while time.monotonic() < until:
            try:
                query(pool)
            except Exception as error:
                errors.append(error)

    at_once(work, 8)
    assert errors == []
    counters = pool.snapshot().counters
    assert counters.closed["lifetime"] + counters.discarded >= 4
    assert counters.checkouts == counters.checkins + counters.discarded
    assert pool.gauges().size <= 4


# Credentials.


def test_a_callable_password_is_called_for_each_connect_and_again_after_a_refusal(
    own_server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    execute(own_server, "CREATE ROLE clerk LOGIN PASSWORD 'token-1'")
    issued = itertools.count(1)
    valid = "token-1"
    asked: list[str] = []

    def token() -> str:
        # The first answer after a change is the old token, which is refused.
        asked.append(valid if next(issued) != 3 else "token-stale")
        return asked[-1]

    alias = make_database(own_server, max_size=3, min_size=0)
    connections.settings[alias].update(USER="clerk", PASSWORD=token)
    pool = pool_of(alias)
    fill(pool, 2)
    assert asked == ["token-1"] * 2
    execute(own_server, "ALTER ROLE clerk PASSWORD 'token-2'")
    valid = "token-2"
    fill(pool, 3)
    assert asked == ["token-1", "token-1", "token-stale", "token-2"]
    counters = pool.snapshot().counters
    assert (counters.connects, counters.connect_failures) == (3, 0)


class TokenService:
    """A client of some service, which nobody can copy."""

    def __init__(self, password: str) -> None:
        self._lock = threading.Lock()
        self._password = password

    def token(self) -> str:
        with self._lock:
            return self._password


def test_credentials_may_come_from_an_object_that_cannot_be_copied(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server)
    service = TokenService(str(connections.settings[alias]["PASSWORD"]))
    connections.settings[alias]["PASSWORD"] = service.token

    @retry_transaction(using=alias)
    def query() -> None:
        execute_in(alias, "CREATE TEMPORARY TABLE looked_up (n int)")

    with fail_next_transaction(None, phase="answer", using=alias) as fault:
        query()
    assert fault.struck == 1


def execute_in(alias: str, statement: str) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute(statement)


SECRET = "s3cret'pass word\\%$"
"""A password with everything that quoting might get wrong."""


@pytest.fixture
def everything_logged(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], str]]:
    """All that any logger says at level DEBUG; it is asked for by calling."""
    names = ["", *logging.root.manager.loggerDict]
    loggers = [logging.getLogger(name) for name in names]
    before = [(logger, logger.level, logger.propagate, logger.disabled) for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
        logger.propagate, logger.disabled = True, False
    with caplog.at_level(logging.DEBUG):
        yield lambda: caplog.text + "".join(repr(record.args) for record in caplog.records)
    for logger, level, propagate, disabled in before:
        logger.setLevel(level)
        logger.propagate, logger.disabled = propagate, disabled


def told(error: BaseException) -> str:
    """Return all that an error says of itself and of what it was raised from."""
    lines = traceback.format_exception(type(error), error, error.__traceback__)
    chain: list[BaseException | None] = [error, error.__cause__, error.__context__]
    return "".join(lines) + "".join(f"{link!r} {link}" for link in chain)


@pytest.mark.parametrize("kind", ["string", "callable"])
@pytest.mark.parametrize(
    "trouble", ["none", "wrong password", "no such database", "server away", "killed", "two hosts"]
)
def test_a_password_is_never_shown(
    server: EmbeddedServer,
    proxy: FaultProxy,
    make_database: MakeDatabase,
    everything_logged: Callable[[], str],
    trouble: str,
    kind: str,
) -> None:
    password = sql.Literal("another" if trouble == "wrong password" else SECRET)
    with psycopg.connect(**server.parameters(), autocommit=True) as admin:
        admin.execute("DROP ROLE IF EXISTS hygiene_clerk")
        admin.execute(sql.SQL("CREATE ROLE hygiene_clerk LOGIN PASSWORD {}").format(password))
    alias = make_database(server, through=proxy, timeout=0.5, leak_after=0.01, max_size=2)
    settings = connections.settings[alias]
    settings.update(USER="hygiene_clerk", PASSWORD=SECRET if kind == "string" else lambda: SECRET)
    if trouble == "no such database":
        settings["NAME"] = "nowhere"
    if trouble == "two hosts":
        settings.update(HOST="127.0.0.1,127.0.0.1", PORT=f"{proxy.port},{proxy.port}")
    if trouble in ("server away", "two hosts"):
        proxy.down()
    seen: list[str] = []
    if trouble in ("none", "killed"):
        assert ask(alias, "SELECT 1") == (1,)
    if trouble == "killed":
        proxy.cut()
        proxy.down()
    if trouble != "none":
        with pytest.raises(OperationalError) as failed:
            ask(alias, "SELECT 1")
        seen.append(told(failed.value))
    connections[alias].close()
    pool = pool_of(alias)
    seen += [
        *(repr(one) for one in (pool, pool.options, pool.snapshot(), pool.gauges(), pool._pool)),
        str(pool.snapshot()),
        repr(pool._pool.get_stats()),
        json.dumps(process_report(registry.snapshots()).as_json()),
        repr(connections[alias]),
        everything_logged(),
    ]
    if trouble == "none":
        connection = pool.checkout()
        seen += [repr(connection), repr(connection.info), str(connection), connection.info.dsn]
        pool.checkin(connection)
    else:
        with pytest.raises((CheckoutTimeout, ConnectFailed)) as refused:
            pool.checkout()
        seen.append(told(refused.value))
    shown = "\n".join(seen)
    assert len(shown) > 200
    for form in (SECRET, repr(SECRET)[1:-1], "s3cret", "pass word"):
        assert form not in shown


@pytest.mark.parametrize("layout", ["table", "json", "prometheus"])
def test_poolstats_never_shows_a_password(
    server: EmbeddedServer, make_database: MakeDatabase, layout: str, stats_dir: Path
) -> None:
    publisher.stop()
    alias = make_database(server, stats_dir=str(stats_dir))
    connections.settings[alias]["PASSWORD"] = "s3cret-and-wrong"
    with pytest.raises(ConnectFailed):
        ask(alias, "SELECT 1")
    output = io.StringIO()
    try:
        call_command(
            "poolstats", format=layout, stats_dir=str(stats_dir), stdout=output, stderr=output
        )
    finally:
        publisher.stop()
    assert alias in output.getvalue()
    if layout != "prometheus":
        assert "password authentication failed" in output.getvalue()
    assert "s3cret" not in output.getvalue()


def test_sessions_of_a_pool_show_no_password_on_the_server(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server)
    [backend] = ask(alias, "SELECT pg_backend_pid()")
    assert backend in backend_pids(server, "postgres")
    [shown] = ask(alias, "SELECT string_agg(activity::text, ' ') FROM pg_stat_activity activity")
    assert server.password not in shown

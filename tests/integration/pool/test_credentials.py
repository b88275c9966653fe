"""Credentials that are fetched, and connections that the project opens, on real servers."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from django.db import close_old_connections, connections

from django_pooled.errors import CheckoutTimeout, ConnectFailed
from django_pooled.poolstats.server.probe import Probe
from django_pooled.testing import terminate_backend
from tests.servers.silent_hosts import accepts_and_never_answers
from tests.support.pools import query, reconnect
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django_pooled.pool.pool import Pool
    from embedded_postgres import EmbeddedServer
    from tests.support.pools import MakeDatabase, MakePool

LONG = 600.0


class Issuer:
    """Issues a new password for a role with each call; the server takes the last one alone."""

    def __init__(self, server: EmbeddedServer, role: str) -> None:
        self._server = server
        self.role = role
        self.calls = 0
        self.error: Exception | None = None
        self.answers = threading.Event()
        self.answers.set()
        self._last = ""

    def __call__(self) -> str:
        self.calls += 1
        assert self.answers.wait(60)
        if self.error is not None:
            raise self.error
        if not self._last:
            self.rotate()
        return self._last

    def rotate(self) -> None:
        """Have another password count from now on."""
        self._last = f"issued-{time.monotonic_ns()}"
        with psycopg.connect(**self._server.parameters(), autocommit=True) as admin:
            admin.execute(f"ALTER ROLE {self.role} PASSWORD '{self._last}'")

    def parameters(self) -> dict[str, Any]:
        return {"user": self.role, "password": self()}


@pytest.fixture
def issuer(server: EmbeddedServer) -> Iterator[Issuer]:
    with psycopg.connect(**server.parameters(), autocommit=True) as admin:
        admin.execute("CREATE ROLE issued LOGIN")
        yield Issuer(server, "issued")
        admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'issued'"
        )
        admin.execute("DROP ROLE issued")


@pytest.fixture
def make_kept(server: EmbeddedServer, make_pool: MakePool, issuer: Issuer) -> Callable[..., Pool]:
    """Make pools that keep what the issuer issues."""

    def make(**options: Any) -> Pool:
        found: dict[str, Any] = {"credentials_lifetime": LONG, "min_size": 0, **options}
        parameters = {"user": issuer.role, "password": issuer, **found.pop("parameters", {})}
        return make_pool(server, parameters=parameters, credentials_change=True, **found)

    return make


def test_credentials_are_fetched_once_for_many_connections(
    make_kept: Callable[..., Pool], issuer: Issuer
) -> None:
    pool = make_kept(max_size=5)
    for _ in range(5):
        reconnect(pool)
    assert issuer.calls == 1


def test_a_password_that_was_changed_is_fetched_at_once_and_no_request_notices(
    make_kept: Callable[..., Pool], issuer: Issuer
) -> None:
    pool = make_kept()
    query(pool)
    for calls in (2, 3):
        issuer.rotate()
        reconnect(pool)
        assert issuer.calls == calls
    assert pool.snapshot().counters.connect_failures == 0


def test_a_changed_password_is_fetched_also_where_another_host_is_dead(
    make_kept: Callable[..., Pool], issuer: Issuer, server: EmbeddedServer
) -> None:
    with accepts_and_never_answers() as silent:
        hosts = {"host": "127.0.0.1,127.0.0.1", "port": f"{silent},{server.port}"}
        pool = make_kept(parameters=hosts, timeout=30.0)
        query(pool)
        issuer.rotate()
        reconnect(pool)
    assert issuer.calls == 2


def test_user_and_password_are_fetched_together(
    server: EmbeddedServer, make_pool: MakePool, issuer: Issuer
) -> None:
    pool = make_pool(
        server,
        credentials=issuer.parameters,
        credentials_lifetime=LONG,
        credentials_change=True,
        parameters={"user": "nobody", "password": "nothing"},
    )
    connection = pool.checkout()
    assert connection.info.user == "issued"
    pool.checkin(connection)
    del connection
    issuer.rotate()
    reconnect(pool)


def test_they_are_fetched_ahead_without_a_request(
    make_kept: Callable[..., Pool], issuer: Issuer
) -> None:
    pool = make_kept(credentials_lifetime=1.0)
    query(pool)
    wait_until(lambda: issuer.calls == 2)
    # And no more, since no connection has asked for those.
    time.sleep(2.0)
    assert issuer.calls == 2


def test_a_call_that_hangs_costs_nothing_while_the_last_credentials_will_do(
    make_kept: Callable[..., Pool], issuer: Issuer
) -> None:
    pool = make_kept(credentials_lifetime=0.5, timeout=5.0)
    query(pool)
    issuer.answers.clear()
    time.sleep(0.6)
    for _ in range(10):
        reconnect(pool)
    issuer.answers.set()
    assert pool.snapshot().counters.timeouts == 0


def test_no_waiter_waits_for_a_slow_call_longer_than_its_own_time(
    make_kept: Callable[..., Pool], issuer: Issuer
) -> None:
    pool = make_kept(timeout=1.0, max_size=4)
    issuer.answers.clear()
    began = time.monotonic()
    with ThreadPoolExecutor(8) as threads:
        waiting = [threads.submit(query, pool) for _ in range(8)]
        errors = [each.exception(30) for each in waiting]
    assert all(isinstance(error, CheckoutTimeout) for error in errors)
    assert time.monotonic() - began < 10.0
    assert issuer.calls == 1
    issuer.answers.set()
    assert wait_until(lambda: query(pool)) == 42


def test_a_service_that_fails_is_told_where_there_are_no_credentials_yet(
    make_kept: Callable[..., Pool], issuer: Issuer
) -> None:
    issuer.error = OSError("503 from the token service")
    pool = make_kept(timeout=1.0)
    words = "fetching the credentials raised OSError: 503 from the token service"
    with pytest.raises(CheckoutTimeout, match=words):
        query(pool)


async def a_coroutine() -> str:
    return "never"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"parameters": {"password": lambda: b"bytes"}}, "PASSWORD returned bytes; expected a str"),
        ({"parameters": {"user": lambda: 7}}, "USER returned int; expected a str"),
        (
            {"parameters": {"password": lambda: a_coroutine()}},
            "PASSWORD returned something to be awaited; expected a str",
        ),
        (
            {"credentials": lambda: "secret"},
            r"\['credentials'\] returned str; expected a dict of connection parameters",
        ),
        (
            {"credentials": lambda: {"username": "ada"}},
            "returned 'username', which is not a connection parameter; .* Did you mean 'user'?",
        ),
        (
            {"credentials": lambda: {"password": None, "user": 7}},
            r"\['credentials'\] \['user'\] returned int; expected a str",
        ),
    ],
)
def test_what_cannot_be_used_is_told_at_once(
    server: EmbeddedServer, make_pool: MakePool, options: dict[str, Any], words: str
) -> None:
    pool = make_pool(server, min_size=0, timeout=60.0, **options)
    with pytest.raises(ConnectFailed, match=words):
        query(pool)


# What connects outside of the pool.


@pytest.mark.parametrize("way", ["password", "credentials", "connect"])
def test_a_look_at_the_server_connects_as_the_pool_does(
    server: EmbeddedServer, make_database: MakeDatabase, issuer: Issuer, way: str
) -> None:
    def connect(**parameters: Any) -> Any:
        return psycopg.connect(**{**parameters, **issuer.parameters()})

    options: dict[str, Any] = {"credentials": issuer.parameters, "connect": connect}
    pool = {name: value for name, value in options.items() if name == way}
    alias = make_database(server, **pool)
    connections.settings[alias].update(USER="issued", PASSWORD=issuer)
    if pool:
        connections.settings[alias].update(USER="nobody", PASSWORD="nothing")

    def user(connection: psycopg.Connection[Any]) -> Any:
        return connection.execute("SELECT session_user::text").fetchone()

    probe = Probe(connections[alias], user, "looks")
    probe.start(10.0)
    try:
        assert probe.wait(20.0) == ("issued",)
    finally:
        probe.close()


# Connections that the project opens.


class Connector:
    """Opens connections as a vendor's library does: with psycopg's own class."""

    def __init__(self) -> None:
        self.calls = 0
        self.failure: BaseException | None = None
        self.instead: object = None

    def __call__(self, **parameters: Any) -> Any:
        self.calls += 1
        if self.failure is not None:
            raise self.failure
        if self.instead is not None:
            return self.instead
        return psycopg.connect(**parameters)


@pytest.fixture
def connector() -> Connector:
    return Connector()


def test_a_connection_that_the_project_opens_is_used_as_any_other(
    server: EmbeddedServer, make_pool: MakePool, connector: Connector
) -> None:
    pool = make_pool(server, connect=connector, max_size=2)
    for _ in range(3):
        reconnect(pool)
    assert connector.calls == pool.snapshot().counters.connects
    assert pool.gauges().in_use == 0


@pytest.mark.parametrize("pool_mode", ["session", "transaction"])
def test_django_works_on_a_connection_that_the_project_opens(
    server: EmbeddedServer, make_database: MakeDatabase, connector: Connector, pool_mode: str
) -> None:
    alias = make_database(server, connect=connector, pool_mode=pool_mode)
    # A type that Django registers, and a cursor of its own.
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT %s::jsonb, '[1,2)'::int4range, now()", ['{"a": 1}'])
        json, _, now = cursor.fetchone()
        assert json == '{"a": 1}'
        assert now.tzinfo is not None
        if pool_mode == "session":
            terminate_backend(using=alias)
        cursor.execute("SELECT 42")
        assert cursor.fetchone() == (42,)
    close_old_connections()
    assert connector.calls >= 1


def test_a_refusal_by_the_server_is_one_also_there(
    server: EmbeddedServer, make_pool: MakePool, connector: Connector
) -> None:
    pool = make_pool(
        server,
        min_size=0,
        timeout=60.0,
        connect=connector,
        parameters={"password": "not-the-password"},
    )
    with pytest.raises(ConnectFailed, match="password authentication failed"):
        query(pool)


def test_a_failure_of_the_library_is_waited_out(
    server: EmbeddedServer, make_pool: MakePool, connector: Connector
) -> None:
    connector.failure = RuntimeError("the instance's metadata cannot be fetched")
    pool = make_pool(server, min_size=0, timeout=60.0, connect=connector)
    with ThreadPoolExecutor(1) as thread:
        answer = thread.submit(query, pool)
        wait_until(lambda: connector.calls > 2)
        connector.failure = None
        assert answer.result(30) == 42


@pytest.mark.parametrize(
    ("instead", "words"),
    [
        ("a socket", r"\['connect'\] raised TypeError: returned str; expected an open psycopg"),
        (psycopg.Connection, "returned type; expected an open psycopg.Connection"),
    ],
)
def test_what_is_no_connection_is_told_at_once(
    server: EmbeddedServer, make_pool: MakePool, connector: Connector, instead: object, words: str
) -> None:
    connector.instead = instead
    pool = make_pool(server, min_size=0, timeout=60.0, connect=connector)
    with pytest.raises(ConnectFailed, match=words):
        query(pool)


def test_a_connection_in_a_transaction_is_refused_and_closed(
    server: EmbeddedServer, make_pool: MakePool, connector: Connector
) -> None:
    opened = psycopg.connect(**server.parameters("postgres"))
    opened.execute("SELECT 1")
    connector.instead = opened
    pool = make_pool(server, min_size=0, timeout=60.0, connect=connector)
    with pytest.raises(ConnectFailed, match="returned a connection in status INTRANS"):
        query(pool)
    assert opened.closed


def test_a_connect_that_hangs_is_given_up_and_overtaken(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    released, calls = threading.Event(), []

    def connect(**parameters: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            assert released.wait(60)
        return psycopg.connect(**parameters)

    parameters = {"connect_timeout": 2}
    pool = make_pool(server, min_size=0, timeout=60.0, connect=connect, parameters=parameters)
    assert query(pool) == 42
    released.set()
    wait_until(lambda: pool.snapshot().counters.connects == 2)

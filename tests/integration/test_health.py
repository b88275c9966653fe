"""What probes hear of a process: with real servers that are stopped, frozen, full, well again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.asgi import ASGIHandler
from django.db import connections
from django.test import Client, RequestFactory
from django.urls import path

from django_pooled.base import DatabaseWrapper
from django_pooled.health import liveness, readiness
from django_pooled.pool import registry
from django_pooled.pool.readiness import State
from embedded_postgres import free_port
from tests.servers.postgresql import backend_count, backend_pids, kill_backends, stopped
from tests.support.pools import fill
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from django.http import JsonResponse
    from pytest_django import Settings

    from django_pooled.pool.pool import Pool
    from embedded_postgres import EmbeddedServer
    from tests.servers.fault_proxy import FaultProxy
    from tests.support.pools import MakeDatabase, MakePool

urlpatterns = [
    path("health/ready", readiness),
    path("health/ready/<using>", readiness),
    path("health/live", liveness),
]

SLACK = 10.0
"""Seconds that a limit may be exceeded by on a machine that is busy with something else."""

NEVER = {"initial": 600.0, "maximum": 600.0, "jitter": False}
"""A backoff that makes no second attempt while a test runs."""

needs_signals = pytest.mark.skipif(
    sys.platform == "win32", reason="processes cannot be stopped there"
)


def ask(using: str | list[str], timeout: float = 5.0) -> JsonResponse:
    """Call the view as a probe does; it has to keep to its limit."""
    started = time.monotonic()
    response: JsonResponse = readiness(RequestFactory().get("/"), using=using, timeout=timeout)
    assert time.monotonic() - started < timeout + SLACK
    return response


def forget(alias: str) -> None:
    """Let what was found out of a pool be no longer believed, which it is for half a second."""
    found = pool_of(alias)._readiness
    wait_until(lambda: found._check is None or found._check._over.is_set())
    found._check = None


def state(alias: str, timeout: float = 5.0) -> str:
    """Return what a new look says of one database."""
    forget(alias)
    response = ask(alias, timeout)
    found = json.loads(response.content)["databases"][alias]
    assert (response.status_code == 200) is (found in ("ready", "busy", "read-only"))
    return str(found)


def ask_at_once(alias: str, count: int, timeout: float) -> set[tuple[int, str]]:
    """Ask many times at the same moment; return the different answers."""
    together = threading.Barrier(count)

    def one() -> tuple[int, str]:
        together.wait()
        response = ask(alias, timeout)
        return response.status_code, json.loads(response.content)["databases"][alias]

    with ThreadPoolExecutor(count) as threads:
        return {future.result() for future in [threads.submit(one) for _ in range(count)]}


def pool_of(alias: str) -> Pool:
    wrapper = connections[alias]
    assert isinstance(wrapper, DatabaseWrapper)
    assert wrapper.pool is not None
    return wrapper.pool


def attempts(alias: str) -> int:
    """Return how often the pool has tried to connect."""
    counters = pool_of(alias).snapshot().counters
    return counters.connects + counters.connect_failures


@contextlib.contextmanager
def in_use(pool: Pool) -> Iterator[None]:
    """Have one connection in use."""
    connection = pool.checkout()
    try:
        yield
    finally:
        pool.checkin(connection)


@contextlib.contextmanager
def frozen(server: EmbeddedServer) -> Iterator[None]:
    """Stop the server's processes in the middle of whatever they do."""
    with stopped([server.pid, *backend_pids(server, "postgres")]):
        yield


@pytest.fixture
def other_server(make_server: Callable[..., EmbeddedServer]) -> EmbeddedServer:
    """A server that is this test's own."""
    return make_server()


# While all is well.


def test_a_process_that_has_just_started_opens_its_pool_and_is_ready(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server, min_size=0)
    assert alias not in {pool.alias for pool in registry.snapshots()}
    response = ask(alias)
    assert response.status_code == 200
    assert json.loads(response.content) == {"status": "ready", "databases": {alias: "ready"}}
    assert "no-store" in response["Cache-Control"]
    assert attempts(alias) == 1
    assert state(alias) == "ready"
    assert attempts(alias) == 1


def test_with_open_at_start_a_pool_is_not_ready_before_it_has_min_size(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    go_on = threading.Event()
    configured: list[object] = []

    def configure(connection: object) -> None:
        configured.append(connection)
        if len(configured) > 1:
            go_on.wait(30)

    pool = make_pool(server, min_size=3, open_at_start=True, configure=configure)
    wait_until(lambda: pool.gauges().idle == 1)
    assert pool.check_readiness(0.4).result(SLACK) is State.OPENING
    go_on.set()
    wait_until(lambda: pool.check_readiness(5.0).result(SLACK) is State.READY)
    assert pool.gauges().idle == 3


def test_with_open_at_start_min_size_is_waited_for_once(
    make_server: Callable[..., EmbeddedServer], make_database: MakeDatabase
) -> None:
    server = make_server()
    with psycopg.connect(**server.parameters("template1"), autocommit=True) as admin:
        admin.execute("CREATE ROLE few LOGIN PASSWORD 'few' CONNECTION LIMIT 2")
        alias = make_database(server, min_size=3, open_at_start=True)
        connections.settings[alias].update(USER="few", PASSWORD="few")
        assert wait_until(lambda: state(alias)) == "server away"
        wait_until(lambda: pool_of(alias)._pool.in_place == 2)
        assert state(alias) == "server away"
        admin.execute("ALTER ROLE few CONNECTION LIMIT 3")
        wait_until(lambda: state(alias) == "ready")
        assert pool_of(alias).gauges().size == 3
        admin.execute("ALTER ROLE few CONNECTION LIMIT 1")
        kill_backends(server, "postgres")
        wait_until(lambda: state(alias) == "ready")
        assert pool_of(alias).gauges().size < 3


def test_an_idle_connection_is_asked_and_goes_back(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server)
    pool = pool_of(alias)
    fill(pool, 2)
    before = pool.snapshot().counters.checkouts
    assert ask_at_once(alias, 50, timeout=5.0) == {(200, "ready")}
    counters = pool.snapshot().counters
    assert counters.checkouts == before + 1
    assert counters.checkouts == counters.checkins
    assert pool.gauges().idle == 2


def test_an_answer_is_believed_for_a_moment_and_no_longer(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server)
    pool = pool_of(alias)
    first = pool.check_readiness(5.0)
    assert first.result(5.0).serves
    assert pool.check_readiness(5.0) is first
    wait_until(lambda: pool.check_readiness(5.0) is not first)


def test_connections_killed_while_idle_are_replaced_before_the_answer(
    other_server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(other_server)
    fill(pool_of(alias), 3)
    assert kill_backends(other_server, "postgres") == 3
    assert state(alias) == "ready"


def test_where_none_is_idle_one_more_is_opened(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server, max_size=2)
    pool = pool_of(alias)
    with in_use(pool):
        assert state(alias) == "ready"
        assert pool.gauges().size == 2


# Full.


def test_a_pool_that_is_full_but_moves_is_ready_and_no_waiter_is_kept_from_its_turn(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server, max_size=1, max_waiting=3, timeout=5.0)
    pool = pool_of(alias)
    fill(pool, 1)
    stop = threading.Event()

    def work() -> int:
        turns = 0
        while not stop.is_set():
            with in_use(pool):
                time.sleep(0.02)
            turns += 1
        return turns

    with ThreadPoolExecutor(4) as threads:
        turns = [threads.submit(work) for _ in range(4)]
        wait_until(lambda: pool.gauges().waiting == 3)
        checkouts = pool.snapshot().counters.checkouts
        states = {state(alias) for _ in range(3)}
        stop.set()
        # A probe that queued would be a fourth waiter, and one of these refused.
        done = sum(future.result() for future in turns)
    assert states == {"busy"}
    assert checkouts < pool.snapshot().counters.checkouts == done + 1


def test_a_pool_that_is_full_and_stuck_is_saturated_until_one_comes_back(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server, max_size=1, max_waiting=1, timeout=1.0)
    pool = pool_of(alias)
    with in_use(pool):
        assert ask(alias).status_code == 200
        wait_until(lambda: state(alias) == "saturated")
        assert ask_at_once(alias, 50, timeout=5.0) == {(503, "saturated")}
        # Nobody has queued.
        assert pool.gauges().waiting == 0
    assert state(alias) == "ready"
    assert attempts(alias) == 1


def test_a_pool_that_cannot_grow_is_busy_for_as_long_as_what_it_has_comes_back(
    other_server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    with psycopg.connect(**other_server.parameters("postgres"), autocommit=True) as admin:
        admin.execute("CREATE ROLE clerk LOGIN PASSWORD 'x' CONNECTION LIMIT 1")
    alias = make_database(other_server, max_size=5, timeout=1.5)
    connections.settings[alias].update(USER="clerk", PASSWORD="x")
    pool = pool_of(alias)
    with in_use(pool):
        assert state(alias) == "busy"
        # No more than one that is away from the start, once nothing came back for `timeout`.
        wait_until(lambda: state(alias) == "server away")
    assert state(alias) == "ready"


# Away.


def test_a_stopped_server_is_told_at_once_and_so_is_its_return(
    own_server: EmbeddedServer,
    make_database: MakeDatabase,
    caplog: pytest.LogCaptureFixture,
) -> None:
    alias = make_database(own_server)
    with caplog.at_level(logging.INFO, logger="django_pooled.pool"):
        assert state(alias) == "ready"
        own_server.stop()
        assert {state(alias, timeout=30.0) for _ in range(3)} == {"server away"}
        own_server.start()
        wait_until(lambda: state(alias) == "ready")
    told = [r for r in caplog.records if getattr(r, "event", None) in ("ready", "not_ready")]
    assert [record.levelname for record in told] == ["WARNING", "WARNING"]
    outage = told[1].outage  # type: ignore[attr-defined]
    assert [record.getMessage() for record in told] == [
        f"pool '{alias}': not ready: server away",
        f"pool '{alias}': ready again after {outage:.1f} s",
    ]


def test_fifty_probes_during_an_outage_make_no_attempt_beyond_the_pool_s_own(
    server: EmbeddedServer, proxy: FaultProxy, make_database: MakeDatabase
) -> None:
    alias = make_database(server, through=proxy, max_size=10, backoff=NEVER)
    pool = pool_of(alias)
    fill(pool, 5)
    proxy.down()
    proxy.cut()
    wait_until(lambda: state(alias) == "server away")
    before = attempts(alias)
    for _ in range(3):
        forget(alias)
        assert ask_at_once(alias, 50, timeout=5.0) == {(503, "server away")}
    assert attempts(alias) == before
    assert pool.gauges().waiting == 0
    assert pool.snapshot().connecting == 1


def test_fifty_probes_after_the_pool_gave_up_make_one_attempt_and_find_the_server_again(
    server: EmbeddedServer, proxy: FaultProxy, make_database: MakeDatabase
) -> None:
    alias = make_database(server, through=proxy, min_size=0, max_size=10, reconnect_timeout=0.0)
    proxy.down()
    assert state(alias) == "server away"
    wait_until(lambda: pool_of(alias).snapshot().connecting == 0)
    before = attempts(alias)
    for more in (1, 2):
        forget(alias)
        assert ask_at_once(alias, 50, timeout=5.0) == {(503, "server away")}
        wait_until(lambda: pool_of(alias).snapshot().connecting == 0)
        assert attempts(alias) == before + more
    proxy.forward()
    assert state(alias) == "ready"
    assert attempts(alias) == before + 3


def test_a_wrong_password_is_refused_in_one_word_with_one_login_for_fifty_probes(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server, max_size=10, backoff=NEVER)
    connections.settings[alias]["PASSWORD"] = "not this one"
    assert ask_at_once(alias, 50, timeout=5.0) == {(503, "refused")}
    assert attempts(alias) == 1
    # As long as the refusal stands, nobody knocks again.
    assert state(alias) == "refused"
    assert attempts(alias) == 1
    body = ask(alias).content.decode()
    assert json.loads(body) == {"status": "not ready", "databases": {alias: "refused"}}


def test_a_password_that_was_mended_is_found_without_any_request(
    other_server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    with psycopg.connect(**other_server.parameters("postgres"), autocommit=True) as admin:
        admin.execute("CREATE ROLE clerk LOGIN PASSWORD 'old'")
        alias = make_database(other_server)
        connections.settings[alias].update(USER="clerk", PASSWORD="new")
        assert state(alias) == "refused"
        admin.execute("ALTER ROLE clerk PASSWORD 'new'")
    wait_until(lambda: state(alias) == "ready")


# Frozen.


@needs_signals
def test_fifty_probes_of_a_frozen_server_keep_to_their_limit_and_cost_one_round_trip(
    other_server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(other_server, check_timeout=60.0)
    pool = pool_of(alias)
    fill(pool, 3)
    with frozen(other_server):
        for _ in range(2):
            assert ask_at_once(alias, 50, timeout=0.3) == {(503, "no answer")}
        assert (pool.gauges().idle, attempts(alias)) == (2, 3)
    # What was slow to answer is not closed for it.
    wait_until(lambda: pool.gauges().idle == 3)
    assert state(alias) == "ready"
    assert attempts(alias) == 3


@needs_signals
def test_after_an_answer_that_did_not_come_only_a_new_sign_makes_a_pool_ready(
    other_server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    options = {"connect_timeout": 60}
    alias = make_database(
        other_server, options=options, check_timeout=0.3, timeout=60.0, min_size=2
    )
    pool = pool_of(alias)
    fill(pool, 2)
    with in_use(pool):
        with frozen(other_server):
            # The idle one is given up as at a checkout, and another is opened, in vain.
            assert pool.check_readiness(0.5).result(10.0) is State.SILENT
            assert pool.gauges().idle == 0
            # What is in use was well a moment ago, but that does not count any more.
            assert [state(alias, timeout=0.2) for _ in range(2)] == ["no answer"] * 2
            assert pool.snapshot().connecting == 1
        assert state(alias) == "ready"


def test_a_process_that_starts_while_the_server_is_silent_answers_within_the_limit(
    server: EmbeddedServer, proxy: FaultProxy, make_database: MakeDatabase
) -> None:
    proxy.deaf()
    alias = make_database(server, through=proxy, min_size=3)
    assert state(alias, timeout=0.3) == "no answer"
    assert len(proxy.connects()) <= 3
    proxy.forward()
    proxy.cut()
    wait_until(lambda: state(alias) == "ready")


def test_a_closed_pool_opens_nothing(server: EmbeddedServer, make_pool: MakePool) -> None:
    pool = make_pool(server)
    wait_until(lambda: pool.gauges().idle == 1)
    pool.close()
    assert pool.check_readiness(0.1).result(5.0) is State.SILENT
    assert pool.snapshot().counters.connects == 1
    assert pool.snapshot().connecting == 0


def test_a_pool_that_has_all_its_connections_opens_no_more(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, max_size=2)
    fill(pool, 2)
    assert pool._pool.open_one() is False
    assert pool.snapshot().counters.connects == 2


# Several databases.


def test_each_database_is_told_and_one_that_is_away_is_enough(
    server: EmbeddedServer, proxy: FaultProxy, make_database: MakeDatabase
) -> None:
    well, away = make_database(server), make_database(server, through=proxy)
    proxy.down()
    response = ask([well, away])
    assert response.status_code == 503
    assert json.loads(response.content)["databases"] == {well: "ready", away: "server away"}
    assert ask(well).status_code == 200


def test_two_silent_databases_take_no_longer_than_one(
    server: EmbeddedServer, proxy: FaultProxy, make_database: MakeDatabase
) -> None:
    proxy.deaf()
    aliases = [make_database(server, through=proxy) for _ in range(3)]
    response = ask(aliases, timeout=2.5)
    # One after the other they would be asked 5 s apart.
    connects = proxy.connects()
    assert connects[-1] - connects[0] < 2.5
    assert set(json.loads(response.content)["databases"].values()) == {"no answer"}


def test_a_database_without_a_pool_is_left_out_and_cannot_be_chosen(
    server: EmbeddedServer, make_database: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    alias = make_database(server)
    connections.settings[alias]["OPTIONS"]["pool"] = False
    with pytest.raises(ImproperlyConfigured, match=alias):
        ask(alias)
    request = RequestFactory().get("/")
    assert alias not in json.loads(readiness(request).content)["databases"]
    monkeypatch.setitem(connections.settings["default"]["OPTIONS"], "pool", False)
    connections["default"].close()
    with pytest.raises(ImproperlyConfigured, match="no database has a pool"):
        readiness(request)


@pytest.mark.parametrize("engine", ["no.such.backend", "django.db.backends.oracle"])
def test_an_entry_whose_driver_is_missing_does_not_make_the_others_unready(
    server: EmbeddedServer,
    make_database: MakeDatabase,
    monkeypatch: pytest.MonkeyPatch,
    engine: str,
) -> None:
    alias = make_database(server)
    entry = {**connections.settings[alias], "ENGINE": engine, "OPTIONS": {}}
    monkeypatch.setitem(connections.settings, "legacy", entry)
    found = json.loads(readiness(RequestFactory().get("/")).content)["databases"]
    assert found[alias] == "ready"
    assert "legacy" not in found


# As requests.


@pytest.fixture
def away(
    server: EmbeddedServer, proxy: FaultProxy, make_database: MakeDatabase, settings: Settings
) -> str:
    """A database that cannot be reached, in a site with these views."""
    settings.ROOT_URLCONF = __name__
    proxy.down()
    return make_database(server, through=proxy, timeout=30.0)


def test_a_site_with_a_transaction_for_each_request_answers_at_once(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    settings.ROOT_URLCONF = __name__
    # One whose settings were there when the views were imported, as a project's are.
    default = connections.settings["default"]
    monkeypatch.setitem(default, "ATOMIC_REQUESTS", True)
    monkeypatch.setitem(default, "PORT", free_port())
    monkeypatch.setitem(default, "OPTIONS", {"pool": {"timeout": 60.0}})
    started = time.monotonic()
    assert Client().get("/health/ready/default").status_code == 503
    assert Client().get("/health/live").status_code == 200
    assert time.monotonic() - started < 30.0
    registry.close_pools_of("default")


def test_get_and_head_are_answered_and_nothing_else(away: str) -> None:
    client = Client()
    assert client.head(f"/health/ready/{away}").status_code == 503
    assert client.head("/health/live").status_code == 200
    for address in (f"/health/ready/{away}", "/health/live"):
        assert client.post(address).status_code == 405


def test_no_503_is_logged_as_an_error_or_mailed(
    away: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert Client().get(f"/health/ready/{away}").status_code == 503
    assert {record.levelname for record in caplog.records} == {"WARNING"}
    assert [record for record in caplog.records if record.name.startswith("django.")] == []


def test_a_probe_needs_no_account_and_gets_no_session(away: str, settings: Settings) -> None:
    settings.MIDDLEWARE = [
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.auth.middleware.LoginRequiredMiddleware",
    ]
    for address, status in ((f"/health/ready/{away}", 503), ("/health/live", 200)):
        response = Client().get(address)
        assert response.status_code == status
        assert not response.cookies


def test_a_cache_of_the_whole_site_keeps_no_answer(
    server: EmbeddedServer, proxy: FaultProxy, make_database: MakeDatabase, settings: Settings
) -> None:
    settings.ROOT_URLCONF = __name__
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
    settings.MIDDLEWARE = [
        "django.middleware.cache.UpdateCacheMiddleware",
        "django.middleware.cache.FetchFromCacheMiddleware",
    ]
    alias = make_database(server, through=proxy)
    assert Client().get(f"/health/ready/{alias}").status_code == 200
    proxy.down()
    proxy.cut()
    wait_until(lambda: Client().get(f"/health/ready/{alias}").status_code == 503)


def test_a_probe_by_address_needs_a_host_that_the_site_knows(away: str, settings: Settings) -> None:
    settings.MIDDLEWARE = ["django.middleware.common.CommonMiddleware"]
    settings.ALLOWED_HOSTS = ["shop.example"]

    def status(host: str) -> int:
        return Client(headers={"host": host}).get("/health/live").status_code

    assert status("10.1.2.3:8000") == 400
    assert status("shop.example") == 200
    settings.ALLOWED_HOSTS = ["shop.example", "10.1.2.3"]
    assert status("10.1.2.3:8000") == 200
    # It is the middleware that asks.
    settings.ALLOWED_HOSTS = ["shop.example"]
    settings.MIDDLEWARE = []
    assert status("10.1.2.3:8000") == 200


def test_a_redirect_to_https_hides_an_outage_unless_the_address_is_exempt(
    away: str, settings: Settings
) -> None:
    settings.MIDDLEWARE = ["django.middleware.security.SecurityMiddleware"]
    settings.SECURE_SSL_REDIRECT = True
    # Which Kubernetes takes for a success.
    assert Client().get(f"/health/ready/{away}").status_code == 301
    settings.SECURE_REDIRECT_EXEMPT = [r"^health/"]
    assert Client().get(f"/health/ready/{away}").status_code == 503


def test_asynchronous_handlers_answer_too_and_go_on_meanwhile(
    server: EmbeddedServer, proxy: FaultProxy, make_database: MakeDatabase, settings: Settings
) -> None:
    settings.ROOT_URLCONF = __name__
    proxy.deaf()
    alias = make_database(server, through=proxy)

    # Not Django's AsyncClient: two of its requests at once take signals from each other.
    handler = ASGIHandler()

    async def probe() -> tuple[list[str], list[int]]:
        order: list[str] = []

        async def get(name: str) -> int:
            scope = {
                "type": "http",
                "method": "GET",
                "path": f"/health/{name}",
                "query_string": b"",
                "headers": [],
            }
            requests: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
            await requests.put({"type": "http.request"})
            statuses: list[int] = []

            async def send(message: Mapping[str, Any]) -> None:
                if message["type"] == "http.response.start":
                    statuses.append(message["status"])

            await handler(scope, requests.get, send)
            order.append(name)
            [status] = statuses
            return status

        statuses = await asyncio.gather(get(f"ready/{alias}"), get("live"))
        return order, list(statuses)

    order, statuses = asyncio.run(probe())
    assert statuses == [503, 200]
    assert order[0] == "live"
    proxy.forward()


# Alive.


def test_liveness_takes_no_lock_opens_no_pool_and_asks_nobody(
    away: str, server: EmbeddedServer
) -> None:
    pool = pool_of(away)
    wait_until(lambda: pool.snapshot().counters.connect_failures > 0)
    before = backend_count(server, "postgres")
    opened = {found.alias for found in registry.snapshots()}
    locks: list[Any] = [registry._lock, pool._lock, pool._pool._lock]
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(1) as other:
        for lock in locks:
            stack.enter_context(lock)
        response = other.submit(Client().get, "/health/live").result(5.0)
    assert (response.status_code, response.json()) == (200, {"status": "alive"})
    assert "no-store" in response["Cache-Control"]
    assert backend_count(server, "postgres") == before
    assert {found.alias for found in registry.snapshots()} == opened

"""Errors of a full pool name the holders of its connections."""

from __future__ import annotations

import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from time import sleep
from typing import TYPE_CHECKING, Any

import pytest
from django.db import connections
from django.http import HttpResponse
from django.test import Client
from django.urls import path

from django_pooled import CheckoutTimeout, PoolExhausted, registry
from tests.support.pools import query
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django.http import HttpRequest
    from pytest_django import Settings

    from embedded_postgres import EmbeddedServer
    from tests.support.pools import MakeDatabase, MakePool

HERE = "tests.integration.pool.test_holders"
goes_on = threading.Event()


def report(request: HttpRequest, alias: str) -> HttpResponse:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT 1")
        goes_on.wait(120.0)
    return HttpResponse()


def monthly(request: HttpRequest, alias: str) -> HttpResponse:
    return report(request, alias)


def quick(request: HttpRequest, alias: str) -> HttpResponse:
    connections[alias].ensure_connection()
    return HttpResponse()


def queries_before_the_view(get_response: Callable[[HttpRequest], HttpResponse]) -> Any:
    def middleware(request: HttpRequest) -> HttpResponse:
        with connections[request.path.rpartition("/")[2]].cursor() as cursor:
            cursor.execute("SELECT 'who asks'")
        return get_response(request)

    return middleware


urlpatterns = [
    path("report/<alias>", report),
    path("monthly/<alias>", monthly),
    path("quick/<alias>", quick),
]


def by_hand(alias: str) -> None:
    connections[alias].ensure_connection()
    goes_on.wait(120.0)


@pytest.fixture
def urls(settings: Settings) -> None:
    settings.ROOT_URLCONF = HERE
    settings.MIDDLEWARE = ["django_pooled.middleware.DatabaseUnavailableMiddleware"]


@contextmanager
def holding(alias: str, *what: Any) -> Iterator[None]:
    """Have the connections held, each by a thread of its own."""

    def run(each: Any) -> None:
        try:
            Client().get(f"/{each}/{alias}") if isinstance(each, str) else each(alias)
        finally:
            connections.close_all()

    goes_on.clear()
    with ThreadPoolExecutor(len(what)) as threads:
        running = [threads.submit(run, each) for each in what]
        try:
            wait_until(
                lambda: (
                    any(p.in_use == len(what) for p in registry.snapshots() if p.alias == alias)
                    or any(each.done() for each in running)
                ),
                timeout=60.0,
            )
            yield
        finally:
            goes_on.set()
        for each in running:
            each.result(60.0)


def held_by(alias: str) -> list[str | None]:
    """Return for what the connections of an alias are in use."""
    pools = [pool for pool in registry.snapshots() if pool.alias == alias]
    return [each["by"] for pool in pools for each in pool.connections if each["state"] == "in use"]


@pytest.mark.usefixtures("urls")
class TestAFullPool:
    def test_a_timeout_names_the_view_that_holds_all(
        self, server: EmbeddedServer, make_database: MakeDatabase
    ) -> None:
        alias = make_database(server, max_size=3, timeout=3.0)
        with (
            holding(alias, "report", "report", "report"),
            pytest.raises(CheckoutTimeout) as error,
        ):
            connections[alias].ensure_connection()
        assert (
            f"pool {alias!r}: no connection within 3 s: all 3 connections are in use, 3 by "
            f"{HERE}.report, the longest for " in str(error.value)
        )
        assert " s (after " in str(error.value)
        assert "; size 3 of 3, 0 idle, 3 in use, " in str(error.value)

    def test_a_connection_that_a_middleware_has_checked_out_is_held_by_the_view(
        self, settings: Settings, server: EmbeddedServer, make_database: MakeDatabase
    ) -> None:
        settings.MIDDLEWARE = [f"{HERE}.queries_before_the_view"]
        alias = make_database(server, max_size=1, timeout=1.0)
        with holding(alias, "report"):
            # Until the view's own statement is under way.
            wait_until(lambda: held_by(alias) == [f"{HERE}.report"], timeout=60.0)
            with pytest.raises(CheckoutTimeout, match=rf"in use by {HERE}\.report,"):
                connections[alias].ensure_connection()

    def test_several_holders_are_counted_and_code_without_a_view_is_named_by_its_function(
        self, server: EmbeddedServer, make_database: MakeDatabase
    ) -> None:
        alias = make_database(server, max_size=4, timeout=3.0)
        with (
            holding(alias, "monthly", by_hand, "report", "monthly"),
            pytest.raises(CheckoutTimeout) as error,
        ):
            connections[alias].ensure_connection()
        assert "all 4 connections are in use, 2 by tests." in str(error.value)
        for part in (f"2 by {HERE}.monthly", f"1 by {HERE}.report", f"1 by {HERE}.by_hand"):
            assert part in str(error.value)

    def test_the_log_line_of_a_503_names_the_holder(
        self,
        server: EmbeddedServer,
        make_database: MakeDatabase,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        alias = make_database(server, max_size=1, timeout=3.0)
        with holding(alias, "monthly"), caplog.at_level(logging.WARNING, "django_pooled.pool"):
            answer = Client().get(f"/quick/{alias}", headers={"Accept": "application/json"})
        assert answer.status_code == 503
        assert "monthly" not in json.dumps(answer.json())
        [line] = [r.getMessage() for r in caplog.records if "503" in r.getMessage()]
        assert f"the only connection is in use by {HERE}.monthly, for " in line


def test_an_exhausted_pool_names_the_holders_and_counts_those_beyond_three(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, max_size=5, max_waiting=1, timeout=30.0)

    def first() -> Any:
        return pool.checkout()

    def second() -> Any:
        return pool.checkout()

    def third() -> Any:
        return pool.checkout()

    def fourth() -> Any:
        return pool.checkout()

    held = [first(), first(), second(), third(), fourth()]
    sleep(0.2)
    with ThreadPoolExecutor(1) as threads:
        waiter = threads.submit(query, pool)
        wait_until(lambda: pool.gauges().waiting == 1)
        with pytest.raises(PoolExhausted) as error:
            pool.checkout()
        pool.checkin(held.pop())
        assert waiter.result(30.0) == 42
    for connection in held:
        pool.checkin(connection)
    text = str(error.value)
    assert text.startswith(
        f"pool 'default': 1 thread is waiting already: all 5 connections are in use, "
        f"2 by {HERE}.first, 1 by {HERE}.second, 1 by {HERE}.third, 1 by others, the longest for "
    )


def test_a_timeout_with_nothing_in_use_names_nobody(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    server_away = {"host": "127.0.0.1", "port": 1}
    pool = make_pool(server, timeout=0.3, parameters=server_away)
    with pytest.raises(CheckoutTimeout) as error:
        pool.checkout()
    assert " in use, " not in str(error.value).partition("(")[0]

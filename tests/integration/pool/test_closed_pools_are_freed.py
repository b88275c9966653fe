"""A closed pool goes with the last who holds it; it does not wait for the garbage collector."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any
from weakref import ref

import pytest

from django_pooled.backend.options import parse
from django_pooled.errors import CheckoutTimeout, ConnectFailed, PoolExhausted
from django_pooled.pool.pool import Pool
from embedded_postgres import free_port
from tests.support.pools import query
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from django_pooled.pool.connection import PooledConnection
    from embedded_postgres import EmbeddedServer

    Story = Callable[[Pool, dict[str, Any]], object]


def unused(pool: Pool, parameters: dict[str, Any]) -> None:
    assert pool.gauges().size == 0


def used(pool: Pool, parameters: dict[str, Any]) -> None:
    assert query(pool) == 42


def in_use_as_it_closes(pool: Pool, parameters: dict[str, Any]) -> None:
    connection = pool.checkout()
    pool.close()
    pool.checkin(connection)


def left_behind_by_a_thread(pool: Pool, parameters: dict[str, Any]) -> None:
    thread = threading.Thread(target=pool.checkout)
    thread.start()
    thread.join()
    wait_until(lambda: pool.gauges().idle == 1)


def waited_for_in_vain(pool: Pool, parameters: dict[str, Any]) -> None:
    connection = pool.checkout()
    with pytest.raises(CheckoutTimeout):
        pool.checkout()
    pool.checkin(connection)


def saturated(pool: Pool, parameters: dict[str, Any]) -> None:
    connection = pool.checkout()
    waiter = threading.Thread(target=query, args=(pool,))
    waiter.start()
    wait_until(lambda: pool.gauges().waiting == 1)
    with pytest.raises(PoolExhausted):
        pool.checkout()
    pool.checkin(connection)
    waiter.join()


def refused(pool: Pool, parameters: dict[str, Any]) -> None:
    parameters["password"] = "not-the-password"
    with pytest.raises(ConnectFailed):
        pool.checkout()


def closed_while_the_server_is_away(pool: Pool, parameters: dict[str, Any]) -> None:
    parameters["port"] = free_port()
    with pytest.raises(CheckoutTimeout):
        pool.checkout()


def closed_after_the_server_was_away(pool: Pool, parameters: dict[str, Any]) -> None:
    port = parameters["port"]
    closed_while_the_server_is_away(pool, parameters)
    parameters["port"] = port
    wait_until(lambda: pool.gauges().idle == 1)


@pytest.mark.usefixtures("no_garbage_collection")
@pytest.mark.parametrize(
    ("story", "timeout"),
    [
        (unused, 30.0),
        (used, 30.0),
        (in_use_as_it_closes, 30.0),
        (left_behind_by_a_thread, 30.0),
        (waited_for_in_vain, 0.5),
        (saturated, 30.0),
        (refused, 30.0),
        (closed_while_the_server_is_away, 0.5),
        (closed_after_the_server_was_away, 0.5),
    ],
)
def test_a_closed_pool_is_freed_by_reference_counting_alone(
    server: EmbeddedServer, story: Story, timeout: float, caplog: pytest.LogCaptureFixture
) -> None:
    # A record that is kept has the error that was logged, whose frames hold the pool.
    caplog.set_level(logging.CRITICAL, logger="django_pooled.pool")
    parameters = {**server.parameters("postgres"), "autocommit": True}
    options = {"name": "freed", "min_size": 0, "max_size": 1, "max_waiting": 1, "timeout": timeout}
    pool = Pool(
        "default",
        parse("default", {"OPTIONS": {"pool": options}}),
        parameters=lambda: parameters,
        configure=lambda connection: None,
        server="the test's server",
    )
    pool.open()
    story(pool, parameters)
    pool.close()
    wait_until(lambda: not any(thread.name.startswith("freed") for thread in threading.enumerate()))

    remains: list[ref[Any]] = [
        ref(pool),
        ref(pool._pool),
        ref(pool._connector),
        ref(pool._checkouts),
    ]
    del pool
    assert [found() for found in remains] == [None] * 4


def test_what_an_ended_thread_left_in_a_pool_that_nobody_holds_is_closed(
    server: EmbeddedServer,
) -> None:
    parameters = {**server.parameters("postgres"), "autocommit": True}
    left: list[PooledConnection] = []
    taken, go_on = threading.Event(), threading.Event()

    def forget() -> None:
        pool = Pool(
            "default",
            parse("default", {"OPTIONS": {"pool": {"max_size": 1}}}),
            parameters=lambda: parameters,
            configure=lambda connection: None,
            server="the test's server",
        )
        pool.open()
        left.append(pool.checkout())
        pool.close()
        taken.set()
        go_on.wait(30)

    thread = threading.Thread(target=forget)
    thread.start()
    assert taken.wait(30)
    assert not left[0].closed
    go_on.set()
    thread.join()
    wait_until(lambda: left[0].closed)

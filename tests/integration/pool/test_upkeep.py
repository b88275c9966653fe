"""Connections are replaced before they expire, and pinged while idle, on no checkout's time."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.servers.postgresql import kill_backends
from tests.support.pools import fill, query
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from django_pooled.pool.pool import Pool
    from django_pooled.pool.session import Session
    from embedded_postgres import EmbeddedServer
    from tests.servers.fault_proxy import FaultProxy
    from tests.support.pools import MakePool

AHEAD = 20.0
"""Seconds that a connection has left, and fewer than those before which it is replaced."""
SMALL = 0.7
"""A max_lifetime after which the pool acts of itself within a test."""


def idle(pool: Pool) -> list[Session]:
    return [connection.session for connection in pool._pool.idle_connections]


def closed(pool: Pool) -> dict[str, int]:
    found: dict[Any, int] = pool.snapshot().counters.closed
    return {reason: count for reason, count in found.items() if count}


def connects(pool: Pool) -> int:
    return pool.snapshot().counters.connects


def let_windows_of_idleness_pass(pool: Pool) -> None:
    """Have the pool look twice at what was not needed, as it does every max_idle seconds."""
    pool._pool._needless_before = pool._pool._nconns_min = pool._pool.idle


def sized(make_pool: MakePool, server: EmbeddedServer, **options: Any) -> tuple[list[int], Pool]:
    """Make a pool; return also the list of how many connections it had as each was opened."""
    sizes: list[int] = []
    pools: list[Pool] = []

    def note(connection: object) -> None:
        sizes.append(pools[0]._pool.in_place if pools else 0)

    pools.append(make_pool(server, max_lifetime=1000.0, configure=note, **options))
    return sizes, pools[0]


def test_connections_that_expire_soon_are_replaced_one_after_another(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, min_size=3, max_size=4, max_lifetime=1000.0)
    wait_until(lambda: pool.gauges().idle == 3)
    before = idle(pool)
    for session in before[:2]:
        session.expires_at = time.monotonic() + AHEAD
    pool._upkeep.look()
    after = idle(pool)
    assert [session in after for session in before] == [False, False, True]
    assert (len(after), connects(pool), closed(pool)) == (3, 5, {"lifetime": 2})
    assert pool.snapshot().counters.checkouts == 0


def test_the_new_connection_is_there_before_the_old_one_leaves(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    sizes, pool = sized(make_pool, server, min_size=2, max_size=3)
    wait_until(lambda: pool.gauges().idle == 2)
    idle(pool)[0].expires_at = time.monotonic() + AHEAD
    pool._upkeep.look()
    assert sizes[2:] == [2]


def test_without_room_one_leaves_at_a_time(server: EmbeddedServer, make_pool: MakePool) -> None:
    sizes, pool = sized(make_pool, server, min_size=0, max_size=3)
    fill(pool, 3)
    for session in idle(pool):
        session.expires_at = time.monotonic() + AHEAD
    pool._upkeep.look()
    assert sizes[3:] == [2, 2, 2]
    assert (pool.gauges().idle, closed(pool)) == (3, {"lifetime": 3})


def test_one_that_is_in_use_leaves_as_it_comes_back_and_its_replacement_is_there(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, max_size=4, max_lifetime=1000.0)
    connection = pool.checkout()
    connection.session.expires_at = time.monotonic() + AHEAD
    pool._upkeep.look()
    pool._upkeep.look()
    assert connects(pool) == 2
    assert pool.gauges().idle == 1
    pool.checkin(connection)
    assert closed(pool) == {"lifetime": 1}
    assert query(pool) == 42
    assert connects(pool) == 2


def test_one_that_is_in_use_without_room_is_looked_at_again(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, max_size=1, max_lifetime=1000.0)
    connection = pool.checkout()
    session = connection.session
    session.expires_at = time.monotonic() + AHEAD
    assert pool._upkeep.look() < AHEAD / 2
    pool.checkin(connection)
    pool._upkeep.look()
    assert session not in idle(pool)
    assert pool.gauges().idle == 1


def test_one_that_is_in_use_past_its_end_is_not_looked_at_again(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, max_size=2, max_lifetime=1000.0)
    listening = pool.checkout()
    listening.session.expires_at = time.monotonic() - 60.0
    assert pool._upkeep.look() > 500.0
    pool.checkin(listening)


def test_what_nobody_has_needed_for_max_idle_is_closed_and_not_replaced(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, min_size=1, max_size=4, max_lifetime=1000.0)
    fill(pool, 4)
    let_windows_of_idleness_pass(pool)
    for session in idle(pool):
        session.expires_at = time.monotonic() + AHEAD
    pool._upkeep.look()
    assert (pool.gauges().idle, connects(pool)) == (1, 5)
    assert closed(pool) == {"lifetime": 4}


def test_what_was_needed_at_once_is_replaced_though_it_is_idle_now(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, min_size=0, max_size=8, max_lifetime=1000.0)
    fill(pool, 5)
    let_windows_of_idleness_pass(pool)
    # Three at once since.
    fill_again = [pool.checkout() for _ in range(3)]
    for connection in fill_again:
        pool.checkin(connection)
    for session in idle(pool):
        session.expires_at = time.monotonic() + AHEAD
    pool._upkeep.look()
    assert pool.gauges().idle == 3


def test_nothing_leaves_while_connecting_fails(
    server: EmbeddedServer, make_pool: MakePool, proxy: FaultProxy
) -> None:
    pool = make_pool(server, proxy, min_size=1, max_size=4, max_lifetime=1000.0)
    fill(pool, 2)
    before = idle(pool)
    for session in before:
        session.expires_at = time.monotonic() + AHEAD
    proxy.down()
    for _ in range(2):
        pool._upkeep.look()
    assert idle(pool) == before
    proxy.forward()
    wait_until(lambda: pool._connector.trouble is None)
    pool._upkeep.look()
    assert not set(before) & set(idle(pool))


def test_a_pause_and_a_drain_are_left_alone(server: EmbeddedServer, make_pool: MakePool) -> None:
    pool = make_pool(server, min_size=2, max_size=4, max_lifetime=1000.0, keepalive=1.0)
    wait_until(lambda: pool.gauges().idle == 2)
    before = idle(pool)
    for session in before:
        session.expires_at, session.idle_since = time.monotonic() + AHEAD, 0.0
    held = pool._pool.take_out(before[0])
    assert held is not None
    pool.steering._drain.begin()
    pool._upkeep.look()
    assert [session.idle_since for session in before] == [0.0, 0.0]
    pool._pool.put_back(held)
    wait_until(lambda: pool.steering.to_replace is None)
    assert closed(pool) == {"drained": 2}


def test_a_pool_acts_of_itself(server: EmbeddedServer, make_pool: MakePool) -> None:
    pool = make_pool(server, min_size=2, max_size=3, max_lifetime=SMALL, keepalive=SMALL / 2)
    wait_until(lambda: closed(pool).get("lifetime", 0) >= 6)
    assert set(closed(pool)) == {"lifetime"}
    counters = pool.snapshot().counters
    assert (counters.checkouts, counters.connect_failures) == (0, 0)


@pytest.mark.parametrize("never", [10.0**12, sys.maxsize, 1e300])
def test_a_lifetime_without_an_end_leaves_the_other_tasks_of_a_pool_alone(
    server: EmbeddedServer, make_pool: MakePool, never: float
) -> None:
    pool = make_pool(server, min_size=1, max_size=2, max_idle=0.3, max_lifetime=never)
    fill(pool, 2)
    wait_until(lambda: closed(pool) == {"idle": 1})


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_it_goes_on_after_an_error(
    server: EmbeddedServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(server, min_size=1, max_size=2, max_lifetime=SMALL)
    failed: list[object] = []

    def no_thread(*arguments: object, **options: object) -> None:
        failed.append(None)
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(pool._pool, "take_out", no_thread)
        wait_until(lambda: len(failed) >= 2)
    wait_until(lambda: closed(pool).get("lifetime", 0) >= 2)


def test_an_idle_connection_is_pinged_after_keepalive_and_not_before(
    server: EmbeddedServer, make_pool: MakePool, proxy: FaultProxy
) -> None:
    pool = make_pool(server, proxy, max_size=4, keepalive=100.0)
    fill(pool, 2)
    old, young = idle(pool)
    old.idle_since = time.monotonic() - 200.0
    since = young.idle_since
    pool._upkeep.look()
    assert idle(pool) == [old, young]
    assert time.monotonic() - old.idle_since < 100.0
    assert young.idle_since == since
    assert pool.snapshot().counters.checkouts == 2


def test_those_that_were_pinged_keep_their_turns(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, max_size=4, keepalive=100.0)
    fill(pool, 4)
    before = idle(pool)
    for session in before[:3]:
        session.idle_since = time.monotonic() - 200.0
    pool._upkeep.look()
    assert idle(pool) == before


def test_a_connection_that_was_cut_is_replaced_up_to_min_size(
    server: EmbeddedServer, make_pool: MakePool, proxy: FaultProxy
) -> None:
    pool = make_pool(server, proxy, min_size=2, max_size=4, keepalive=100.0)
    fill(pool, 4)
    for session in idle(pool):
        session.idle_since = time.monotonic() - 200.0
    proxy.cut()
    pool._upkeep.look()
    wait_until(lambda: pool.gauges().idle == 2)
    assert closed(pool) == {"dead": 4}
    assert query(pool) == 42
    assert connects(pool) == 6


def test_connections_that_keep_silent_cost_one_check_in_the_background(
    server: EmbeddedServer, make_pool: MakePool, proxy: FaultProxy
) -> None:
    pool = make_pool(server, proxy, max_size=4, min_size=0, keepalive=100.0, check_timeout=0.3)
    fill(pool, 4)
    for session in idle(pool):
        session.idle_since = time.monotonic() - 200.0
    proxy.freeze()
    began = time.monotonic()
    pool._upkeep.look()
    # Four times as long would be one after another.
    assert time.monotonic() - began < 1.1
    assert closed(pool) == {"dead": 4}


def test_a_ping_counts_neither_as_a_checkout_nor_as_need(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, min_size=0, max_size=4, keepalive=100.0)
    fill(pool, 3)
    let_windows_of_idleness_pass(pool)
    for session in idle(pool):
        session.idle_since = time.monotonic() - 200.0
    pool._upkeep.look()
    assert pool._pool.needless == 3
    assert pool.snapshot().counters.checkouts == 3


@pytest.mark.parametrize("use_lifo", [False, True])
def test_a_checkout_takes_the_first_or_the_last_that_came_back(
    server: EmbeddedServer, make_pool: MakePool, use_lifo: bool
) -> None:
    pool = make_pool(server, max_size=4, use_lifo=use_lifo)
    fill(pool, 3)
    first, _, last = idle(pool)
    connection = pool.checkout()
    assert connection.session is (last if use_lifo else first)
    pool.checkin(connection)


def test_with_lifo_one_thread_uses_one_connection_and_the_others_age(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, min_size=0, max_size=4, use_lifo=True, max_idle=0.3)
    fill(pool, 4)
    used = set()
    deadline = time.monotonic() + 30

    while pool.gauges().size > 1 and time.monotonic() < deadline:
        connection = pool.checkout()
        used.add(connection.session.backend_pid)
        pool.checkin(connection)
    assert len(used) == 1
    assert closed(pool) == {"idle": 3}
    assert kill_backends(server, "postgres") >= 1


def test_a_server_that_ends_idle_sessions_keeps_those_that_are_pinged(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    ended_soon = {"options": "-c idle_session_timeout=3s"}
    pinged = make_pool(server, min_size=2, keepalive=0.5, parameters=ended_soon)
    silent = make_pool(server, min_size=2, parameters=ended_soon)
    for pool in (pinged, silent):
        wait_until(lambda pool=pool: pool.gauges().idle == 2)  # type: ignore[misc]
    wait_until(lambda: all(session.is_readable() for session in idle(silent)))
    # One that is pinged at the moment is not idle, so what was closed is what tells.
    assert closed(pinged) == {}
    wait_until(lambda: pinged.gauges().idle == 2)
    assert connects(pinged) == 2
    assert not any(session.is_readable() for session in idle(pinged))

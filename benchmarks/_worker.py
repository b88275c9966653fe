"""One engine under test: a process with Django and one database, commanded line by line.

It knows nothing of the engine: threads ask Django's connection for what every project asks it
for, and note when. Times are ``time.monotonic()``, which on Linux all processes share.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import random
import threading
import time
from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.support import command_loop
from tests.support.command_loop import name_of

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Commands", "Request", "Write", "obey", "set_up"]


class Request(NamedTuple):
    """What one thread asked of the database, and what came of it."""

    thread: int
    asked: float
    got: float | None
    """When it had its connection; None if it got none."""
    done: float
    """When it had its answer, or its error."""
    error: str | None
    """The error's name."""
    said: str = ""
    """The error's own words."""

    @property
    def waited(self) -> float:
        return (self.got or self.done) - self.asked

    @property
    def took(self) -> float:
        return self.done - self.asked


class Write(NamedTuple):
    """A transaction in which one thread inserted one row, and what came of it."""

    key: str
    began: float
    done: float
    error: str | None


class Commands:
    """The methods that the other side calls by name; each returns what JSON can carry."""

    def __init__(self) -> None:
        from django.db import connection

        self._connection: Any = connection
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._requests: list[Any] = []
        self._lock = threading.Lock()
        self._in_use = self._most_in_use = 0

    def start(self, threads: int, query: str | None = None, pause: float = 0.0) -> None:
        """Have that many threads make requests all the time, with a pause after an error."""

        def ask(number: int, _: int) -> None:
            request = self._request(number, query)
            self._requests.append(request)
            if request.error is not None:
                self._stop.wait(pause)

        self._start(threads, ask)

    def arrive(self, threads: int, arrivals: list[dict[str, Any]]) -> None:
        """Have requests come at random moments, whether those before were answered or not.

        So many threads serve them in the order of their arrival, as a server does; those that have
        to wait for a thread begin to take time at once. What no thread has begun by the end is
        dropped.

        Args:
            threads: How many.
            arrivals: For each kind of request its ``rate`` a second, its ``query``, and its
                ``lane``, which django_pooled alone knows; its place in the list is the number of
                its requests.
        """
        self._stop.clear()
        self._requests = []
        chance = random.Random(1)
        backlog: queue.SimpleQueue[tuple[int, float] | None] = queue.SimpleQueue()

        def come(number: int, rate: float) -> None:
            due = time.monotonic()
            while True:
                due += chance.expovariate(rate)
                if self._stop.wait(max(0.0, due - time.monotonic())):
                    break
                backlog.put((number, due))
            for _ in range(threads):
                backlog.put(None)

        def serve() -> None:
            while (found := backlog.get()) is not None:
                number, asked = found
                if self._stop.is_set():
                    continue
                one = arrivals[number]
                with self._lane(one.get("lane")):
                    request = self._request(number, one["query"])
                self._requests.append(request._replace(asked=asked))

        targets = [partial(come, number, one["rate"]) for number, one in enumerate(arrivals)]
        self._threads = [
            threading.Thread(target=target) for target in [*targets, *[serve] * threads]
        ]
        for thread in self._threads:
            thread.start()

    def _lane(self, name: str | None) -> contextlib.AbstractContextManager[None]:
        if name is None or self._connection.settings_dict["ENGINE"] != "django_pooled":
            return contextlib.nullcontext()
        from django_pooled import lane

        return lane(name)

    def start_writing(self, threads: int, name: str, pause: float, retry: bool) -> None:
        """Have that many threads insert rows all the time, with a pause after each.

        Args:
            threads: how many.
            name: written into each row, beside a key that no other row of this name has.
            pause: seconds.
            retry: use django_pooled's ``retry_transaction`` instead of Django's ``atomic``.
        """
        from django.db.transaction import atomic

        def insert(key: str) -> None:
            with self._connection.cursor() as cursor:
                cursor.execute("INSERT INTO request VALUES (%s, %s)", [name, key])

        transaction: Callable[[str], None] = atomic(insert)
        if retry:
            from django_pooled import retry_transaction

            transaction = retry_transaction(deadline=60.0)(insert)

        def write(number: int, count: int) -> None:
            key, began, error = f"{number}-{count}", time.monotonic(), None
            try:
                transaction(key)
            except Exception as caught:
                error = name_of(caught)
            self._give_back()
            self._requests.append(Write(key, began, time.monotonic(), error))
            self._stop.wait(pause)

        self._start(threads, write)

    def stop(self) -> None:
        """Let each thread finish its request, and begin no other."""
        self._stop.set()

    def finish(self) -> list[Any]:
        """Stop, wait for the threads and return what they saw."""
        self.stop()
        for thread in self._threads:
            thread.join()
        return self._requests

    def seen(self) -> list[Any]:
        """Return what the threads saw so far, whether they still wait for something or not."""
        return list(self._requests)

    def served(self, since: float) -> int:
        """Return how many requests have succeeded since then."""
        return sum(one.error is None and one.done >= since for one in list(self._requests))

    def once(self, query: str | None = None) -> Request:
        """Make one request."""
        return self._request(-1, query)

    def burst(self, threads: int, query: str | None = None) -> list[Request]:
        """Have that many threads make one request each, all at the same moment."""
        barrier = threading.Barrier(threads)
        answers: list[Request] = []

        def ask(number: int) -> None:
            barrier.wait()
            answers.append(self._request(number, query))

        _run([threading.Thread(target=ask, args=(number,)) for number in range(threads)])
        return answers

    def hold(self, connections: int, timeout: float) -> bool:
        """Hold that many connections at the same time, then give them back; tell if all came."""
        together = threading.Barrier(connections)
        held: list[bool] = []

        def keep() -> None:
            try:
                self._connection.ensure_connection()
                together.wait(timeout)
                with self._connection.cursor() as cursor:
                    cursor.execute("SELECT 1")
                together.wait(timeout)
                held.append(True)
            except Exception:
                together.abort()
            finally:
                self._give_back()

        _run([threading.Thread(target=keep) for _ in range(connections)])
        return len(held) == connections

    def until_whole(self, connections: int, until: float) -> float | None:
        """Return when that many could be held at the same time; None if not until then."""
        while time.monotonic() < until:
            if self.hold(connections, timeout=2.0):
                return time.monotonic()
            time.sleep(0.1)
        return None

    def connect(self) -> float:
        """Return the seconds that one connect takes, without any pool."""
        import psycopg

        parameters = self._connection.get_connection_params()
        began = time.monotonic()
        psycopg.connect(**parameters).close()
        return time.monotonic() - began

    def unpooled(self, threads: int = 1) -> list[tuple[float, str]]:
        """Have Django's own engine connect and configure the connection, without any pool.

        Returns:
            For each thread the seconds that it took, and the error's own words.
        """
        from django.db.backends.postgresql.base import DatabaseWrapper

        settings = deepcopy(self._connection.settings_dict)
        del settings["OPTIONS"]["pool"]
        barrier = threading.Barrier(threads)
        found: list[tuple[float, str]] = []

        def connect() -> None:
            wrapper: Any = DatabaseWrapper(deepcopy(settings), "unpooled")
            barrier.wait()
            began, said = time.monotonic(), ""
            try:
                wrapper.connect()
            except Exception as caught:
                said = str(caught)
            found.append((time.monotonic() - began, said))
            with contextlib.suppress(Exception):
                wrapper.close()

        _run([threading.Thread(target=connect) for _ in range(threads)])
        return found

    def close_pool(self) -> None:
        """Close the engine's pool; the next request opens one anew."""
        self._connection.close_pool()

    def most_in_use(self) -> int:
        """Return how many connections were in use at the same time at most, as we count."""
        return self._most_in_use

    def counters(self) -> dict[str, Any]:
        """Return what the engine itself counts."""
        if self._connection.settings_dict["ENGINE"] == "django_pooled":
            from django_pooled import registry
            from django_pooled.stats.snapshot import process_report

            (pool,) = process_report(registry.snapshots()).as_json()["pools"]
            return pool
        return dict(self._connection.pool.get_stats())

    def _start(self, threads: int, work: Callable[[int, int], None]) -> None:
        """Have each thread do that, with its own number and a count, until ``stop``."""

        def keep_on(number: int) -> None:
            for count in itertools.count():
                if self._stop.is_set():
                    return
                work(number, count)

        self._stop.clear()
        self._requests = []
        self._threads = [threading.Thread(target=keep_on, args=(n,)) for n in range(threads)]
        for thread in self._threads:
            thread.start()

    def _request(self, number: int, query: str | None) -> Request:
        asked, got, error, said = time.monotonic(), None, None, ""
        try:
            self._connection.ensure_connection()
            got = time.monotonic()
            self._count(1)
            try:
                if query is not None:
                    with self._connection.cursor() as cursor:
                        cursor.execute(query)
            finally:
                self._count(-1)
        except Exception as caught:
            error, said = name_of(caught), str(caught)
        done = time.monotonic()
        self._give_back()
        return Request(number, asked, got, done, error, said)

    def _give_back(self) -> None:
        # Both engines' way to the pool, as at the end of a request.
        with contextlib.suppress(Exception):
            self._connection.close()

    def _count(self, change: int) -> None:
        with self._lock:
            self._in_use += change
            self._most_in_use = max(self._most_in_use, self._in_use)


def _run(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def set_up() -> None:
    """Set Django up for the database that the environment names."""
    import django
    from django.conf import settings

    settings.configure(
        DATABASES={"default": json.loads(os.environ["BENCHMARK_DATABASE"])}, USE_TZ=True
    )
    django.setup()


def obey(commands: object) -> None:
    """Call the methods that standard input names, until its end, and end the process."""
    command_loop.obey(commands)
    # Threads that still wait for a connection are of no interest any more.
    os._exit(0)


if __name__ == "__main__":
    set_up()
    obey(Commands())

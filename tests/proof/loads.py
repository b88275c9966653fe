"""Threads that make decorated calls, one after another, and note what came of each."""

from __future__ import annotations

import asyncio
import random
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any, NamedTuple

from asgiref.sync import sync_to_async
from django.db import close_old_connections, connection, transaction
from psycopg import IsolationLevel

from django_pooled import AmbiguousCommit, Backoff, registry, retry_transaction
from tests.proof.peers import PEERS

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MODES", "OUTCOMES", "Attempt", "Call", "Calls", "Load", "supported"]

MODES = ("xid", "token", "callable", "raise", "idempotent")
OUTCOMES = ("acknowledged", "unknown", "failed")
PATIENCE = 90.0
"""Seconds after which a thread that has not come to an end counts as hung."""


class Attempt(NamedTuple):
    """One run of the function of a call."""

    backend_pid: int
    started: float
    """``time.monotonic()``, which on Linux all processes share."""


class Call(NamedTuple):
    """One decorated call and what its caller was told."""

    key: str
    outcome: str
    """"acknowledged" (it returned), "unknown" (`AmbiguousCommit`) or "failed"."""
    error: str
    attempts: list[Attempt]
    ended: float
    callbacks: int
    """How often its ``on_commit`` callback ran."""

    @classmethod
    def from_json(cls, values: list[Any]) -> Call:
        call = cls(*values)
        return call._replace(attempts=[Attempt(*attempt) for attempt in call.attempts])


class Load:
    """Threads of one process, each making one call after another.

    Args:
        mode: one of ``MODES``: the ``commit_check``; or one of ``PEERS``.
        threads: how many.
        first: number of the first of them; the same in no other process.
        calls: how many each thread makes; None for as many as it can until ``stop``.
        isolation: name of the isolation level; None for that of the connection.
        coroutines: whether what is decorated are coroutine functions, which are called by tasks of
            one event loop; the threads wait for them.
    """

    def __init__(
        self,
        *,
        mode: str,
        threads: int,
        first: int,
        calls: int | None = None,
        isolation: str | None = None,
        coroutines: bool = False,
    ) -> None:
        self.mode = mode
        self._loop = event_loop() if coroutines else None
        self._calls = calls
        self._stop = threading.Event()
        self._open: dict[str, list[Attempt]] = {}
        self._callbacks: dict[str, int] = {}
        self._done: list[Call] = []
        self._errors: list[str] = []
        self._threads = [
            threading.Thread(target=self._run, args=[number], daemon=True)
            for number in range(first, first + threads)
        ]
        self._decorate = decorator(mode, self.has_happened, isolation)

    def one(self, thread: int, random: random.Random) -> None:
        """Make one call."""
        raise NotImplementedError

    def has_happened(self, key: str, *args: object) -> bool | None:
        """Tell what became of a call, for ``commit_check=`` a callable."""
        raise NotImplementedError

    def results(self) -> dict[str, Any]:
        """Return what JSON can carry."""
        return {"calls": self._done, "errors": self._errors}

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()

    def ended(self) -> bool:
        """Tell whether all threads have come to their end."""
        return not any(thread.is_alive() for thread in self._threads)

    def join(self) -> None:
        until = time.monotonic() + PATIENCE
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        if not self.ended():
            self._errors.append("a thread did not come to its end")
        else:
            self._errors += [
                f"a connection did not go back to the pool: {connection}"
                for pool in registry.snapshots()
                for connection in pool.connections
                if connection["state"] != "idle"
            ]

    def decorated(self, body: Callable[..., None]) -> Callable[..., None]:
        """Return the function, which notes its attempts and callbacks under its first argument."""

        def begin(key: str) -> None:
            pid = connection.connection.info.backend_pid
            self._open[key].append(Attempt(pid, time.monotonic()))
            transaction.on_commit(lambda: self._call_back(key))

        def attempt(key: str, *args: Any) -> None:
            begin(key)
            body(key, *args)

        async def attempt_in_steps(key: str, *args: Any) -> None:
            await sync_to_async(begin)(key)
            await asyncio.sleep(0)
            await sync_to_async(body)(key, *args)

        loop = self._loop
        if loop is None:
            return self._decorate(attempt)
        coroutine_function: Callable[..., Any] = self._decorate(attempt_in_steps)

        def call(key: str, *args: Any) -> None:
            asyncio.run_coroutine_threadsafe(coroutine_function(key, *args), loop).result()

        return call

    def call(self, decorated: Callable[..., None], key: str, *args: Any) -> Call:
        """Make a call and note its outcome."""
        attempts = self._open[key] = []
        self._callbacks[key] = 0
        outcome, error = "acknowledged", ""
        try:
            decorated(key, *args)
        except AmbiguousCommit as found:
            outcome, error = "unknown", repr(found.__cause__)
        except Exception as found:
            outcome, error = "failed", f"{type(found).__name__}: {found}"
        call = Call(key, outcome, error, attempts, time.monotonic(), self._callbacks[key])
        self._done.append(call)
        return call

    def _call_back(self, key: str) -> None:
        self._callbacks[key] += 1

    def _run(self, number: int) -> None:
        chance = random.Random(f"{number}")
        made = 0
        try:
            while not self._stop.is_set() and made != self._calls:
                made += 1
                self.one(number, chance)
                close_old_connections()
        except Exception as error:
            self._errors.append(f"{type(error).__name__}: {error}")
        finally:
            connection.close()


def event_loop() -> asyncio.AbstractEventLoop:
    """Return an event loop that runs in a thread of its own until the process ends."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return loop


def decorator(
    mode: str, has_happened: Callable[..., bool | None], isolation: str | None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return ``retry_transaction`` with the given ``commit_check``, or one of its peers."""
    if mode in PEERS:
        return PEERS[mode]
    commit_check: Any = has_happened if mode == "callable" else mode
    return retry_transaction(
        commit_check=commit_check,
        isolation_level=IsolationLevel[isolation] if isolation else None,
        max_attempts=30,
        deadline=60.0,
        backoff=Backoff(initial=0.005, maximum=0.1),
    )


def supported(modes: list[str]) -> list[str]:
    """Return those of the modes that ``retry_transaction`` takes."""
    taken = []
    for mode in modes:
        try:
            decorator(mode, lambda *args: None, None)
        except (TypeError, ValueError):
            continue
        taken.append(mode)
    return taken


class Calls(Load):
    """Each call inserts a row of its own and raises a counter that it shares with others.

    The table of rows has no unique index, so that what ran twice shows; in mode "idempotent",
    which may run a function again that was committed, it has one, and the function heeds it.

    Args:
        apart: each thread has a counter of its own, so that none waits for another.
        arguments: as for every load.
    """

    SLOTS = 4

    @classmethod
    def schema(cls, mode: str) -> list[str]:
        """Return the statements that make the tables."""
        return [
            "DROP TABLE IF EXISTS done, counter",
            f"CREATE TABLE done (key text {'PRIMARY KEY' if mode == 'idempotent' else ''})",
            "CREATE TABLE counter (slot int PRIMARY KEY, value int NOT NULL)",
            f"INSERT INTO counter SELECT n, 0 FROM generate_series(0, {cls.SLOTS - 1}) n",
        ]

    def __init__(self, *, apart: bool = False, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._apart = apart
        self._deposit = self.decorated(self._body)

    def one(self, thread: int, random: random.Random) -> None:
        slot = thread if self._apart else random.randrange(self.SLOTS)
        self.call(self._deposit, f"{thread}-{uuid.uuid4().hex}", slot)

    def has_happened(self, key: str, *args: object) -> bool | None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM done WHERE key = %s", [key])
            return bool(cursor.fetchone()[0])

    def _body(self, key: str, slot: int) -> None:
        with connection.cursor() as cursor:
            unless = " ON CONFLICT DO NOTHING" if self.mode == "idempotent" else ""
            cursor.execute(f"INSERT INTO done VALUES (%s){unless}", [key])
            if cursor.rowcount:
                cursor.execute("UPDATE counter SET value = value + 1 WHERE slot = %s", [slot])

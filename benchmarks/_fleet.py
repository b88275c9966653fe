"""A fleet of instances and one server, as discrete events: no thread, no socket, no waiting.

What is the project's own or psycopg_pool's is used as it is: `django_pooled.pool.connector.Waits`
and psycopg_pool's ``AttemptWithBackoff`` say how long is waited. The rules around them are those of
``django_pooled/pool/connector.py`` and ``psycopg_pool/pool.py``, told in a few lines each;
tests/integration/processes/test_fleet.py compares them with the real pools.
"""

from __future__ import annotations

import heapq
import random
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field
from itertools import count
from math import ceil
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg_pool.base import AttemptWithBackoff

from django_pooled.pool.backoff import Backoff
from django_pooled.pool.connector import LONGEST_WHEN_FULL, Waits

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Client", "Clock", "Failed", "Fleet", "Native", "Ours", "PerRequest", "Server", "Signal"]

Process = Generator["float | Signal", None, Any]
"""Yields seconds to sleep, or a signal to wait for."""

CONNECT_TIMEOUT = 10.0
TIMEOUT = 30.0
"""Of a checkout: the same for all."""
LATE = 1.0
"""Seconds of waiting for a connection from which on a request counts as late."""


class Failed(psycopg.OperationalError):
    """A connect or a checkout came to nothing; of a connect, in the server's or libpq's words."""


class Signal:
    """What a process waits for; it is sent once."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._waiting: Process | None = None
        self.sent = False

    def send(self) -> None:
        if not self.sent:
            self.sent = True
            if self._waiting is not None:
                self._clock.resume(self._waiting)

    def wait(self, process: Process) -> None:
        """Have *process* go on when it is sent."""
        self._waiting = process
        if self.sent:
            self._clock.resume(process)


class Clock:
    """Runs processes in the order of their instants."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._due, (self.now + seconds, next(self._order), call))

    def resume(self, process: Process, seconds: float = 0.0) -> None:
        """Start a process, or go on with one."""
        self.after(seconds, lambda: self._step(process))

    def run(self, until: float) -> None:
        while self._due and self._due[0][0] <= until:
            self.now, _, call = heapq.heappop(self._due)
            call()

    def _step(self, process: Process) -> None:
        try:
            wish = next(process)
        except StopIteration:
            return
        if isinstance(wish, Signal):
            wish.wait(process)
        else:
            self.resume(process, wish)


class Server:
    """Refuses at once until it is back; then opens connections, as many at a time as it has cores.

    Args:
        cost: Seconds of one core that a connect takes.
        max_connections: What is beyond is refused, at the same cost: that is on the safe side.
        others: Connections of other clients, which are there as soon as it is back.
        leave: How many of them end each second.
    """

    def __init__(
        self,
        clock: Clock,
        back_at: float,
        cost: float,
        cores: int,
        max_connections: int,
        others: int = 0,
        leave: float = 0.0,
    ) -> None:
        self.knocks: list[float] = []
        self.refused_full: list[float] = []
        self.open = 0
        self.most_open = 0
        self._clock, self._back_at = clock, back_at
        self._cost, self._max = cost, max_connections
        self._others, self._leave = others, leave
        self._cores_free_at = [0.0] * cores

    def connect(self) -> Process:
        """Open a connection; raises Failed."""
        now = self._clock.now
        self.knocks.append(now)
        if now < self._back_at:
            raise Failed("Connection refused")
        done = max(now, self._cores_free_at[0]) + self._cost
        heapq.heapreplace(self._cores_free_at, done)
        if done - now > CONNECT_TIMEOUT:
            # The server does the work, for nobody.
            yield CONNECT_TIMEOUT
            raise Failed("connection timeout expired")
        yield done - now
        if self.open >= self._room:
            self.refused_full.append(self._clock.now)
            raise Failed("sorry, too many clients already")
        self.open += 1
        self.most_open = max(self.most_open, self.open)

    def disconnect(self) -> None:
        self.open -= 1

    @property
    def _room(self) -> int:
        left = self._others - self._leave * (self._clock.now - self._back_at)
        return self._max - max(0, ceil(left))


class Client(ABC):
    """One instance's way to connections. Before the server went away, *size* were idle in it."""

    def __init__(self, clock: Clock, server: Server, size: int) -> None:
        self.clock, self.server, self.size = clock, server, size

    @abstractmethod
    def checkout(self) -> Process:
        """Take a connection; raises Failed."""

    @abstractmethod
    def checkin(self) -> None:
        """Give it back."""


class PerRequest(Client):
    """Django without persistent connections: each request connects."""

    def checkout(self) -> Process:
        yield from self.server.connect()

    def checkin(self) -> None:
        self.server.disconnect()


@dataclass
class _Waiter:
    signal: Signal
    served: bool = False


class _Pool(Client):
    """What both pools share: idle connections, a queue, a count."""

    def __init__(self, clock: Clock, server: Server, size: int) -> None:
        super().__init__(clock, server, size)
        self.dead = size
        """Idle connections that ended with the server."""
        self.idle = 0
        self.nconns = size
        self.waiting: deque[_Waiter] = deque()

    def checkin(self) -> None:
        while self.waiting:
            waiter = self.waiting.popleft()
            if not waiter.signal.sent:
                waiter.served = True
                waiter.signal.send()
                return
        self.idle += 1

    def queue(self, timeout: float) -> Process:
        waiter = _Waiter(Signal(self.clock))
        self.waiting.append(waiter)
        self.grow()
        self.clock.after(max(0.0, timeout), waiter.signal.send)
        yield waiter.signal
        if not waiter.served:
            raise Failed("no connection in time")

    @property
    def waiters(self) -> int:
        return sum(not waiter.signal.sent for waiter in self.waiting)

    @abstractmethod
    def grow(self) -> None:
        """Somebody has queued."""


class Ours(_Pool):
    """`RecoveringPool` and `Connector`: one probe for each pool, then all at once."""

    min_size = 1

    def __init__(
        self,
        clock: Clock,
        server: Server,
        size: int,
        *,
        backoff: Backoff | None = None,
        longest_when_full: float = LONGEST_WHEN_FULL,
    ) -> None:
        super().__init__(clock, server, size)
        self._backoff = backoff or Backoff()
        self._longest_when_full = longest_when_full
        self.opening = 0
        self.trouble = False
        """Or a suspicion: an attempt has to show that the server is there."""
        self._probing = False
        self._turns: deque[Signal] = deque()

    def checkout(self) -> Process:
        if self.dead:
            # The look at its socket tells, and all idle ones are looked at then.
            self.trouble = True
            while self.dead:
                self.dead -= 1
                if self.nconns <= self.min_size or self.waiters:
                    self._open_one()
                else:
                    self.nconns -= 1
        if self.idle:
            self.idle -= 1
        else:
            yield from self.queue(TIMEOUT)

    def grow(self) -> None:
        if self.nconns < self.size and self.opening < self.waiters:
            self.nconns += 1
            self._open_one()

    def _open_one(self) -> None:
        self.opening += 1
        self.clock.resume(self._open())

    def _open(self) -> Process:
        while True:
            if not self.trouble:
                try:
                    yield from self.server.connect()
                    break
                except Failed:
                    self.trouble = True
            if self._probing:
                turn = Signal(self.clock)
                self._turns.append(turn)
                yield turn
            else:
                self._probing = True
            probed = self.trouble
            waits = Waits(self._backoff, self._longest_when_full)
            attempt = 0
            while self.trouble:
                try:
                    yield from self.server.connect()
                    self.trouble = False
                except Failed as error:
                    attempt += 1
                    yield waits.after(attempt, error)
            if self._turns:
                self._turns.popleft().send()
            else:
                self._probing = False
            if probed:
                break
        self.opening -= 1
        self.checkin()


class Native(_Pool):
    """psycopg_pool's own: each connection retries by itself, and one at a time grows the pool.

    Args:
        checks: Whether each checkout asks the server first, as with ``CONN_HEALTH_CHECKS``.
    """

    reconnect_timeout = 300.0

    def __init__(self, clock: Clock, server: Server, size: int, *, checks: bool = False) -> None:
        super().__init__(clock, server, size)
        self._checks = checks
        self._growing = False

    def checkout(self) -> Process:
        deadline = self.clock.now + TIMEOUT
        attempt: AttemptWithBackoff | None = None
        while True:
            if self.idle:
                self.idle -= 1
                return
            if not self.dead:
                yield from self.queue(deadline - self.clock.now)
                return
            self.dead -= 1
            self.clock.resume(self._add())
            if not self._checks:
                raise Failed("the request meets a dead connection")
            if attempt is None:
                attempt = AttemptWithBackoff(timeout=deadline - self.clock.now)
            else:
                attempt.update_delay(self.clock.now)
            if attempt.time_to_give_up(self.clock.now):
                raise Failed("no connection in time")
            yield attempt.delay

    def grow(self) -> None:
        if self.nconns < self.size and not self._growing:
            self.nconns += 1
            self._growing = True
            self.clock.resume(self._add(growing=True))

    def _add(self, *, growing: bool = False) -> Process:
        attempt = AttemptWithBackoff(timeout=self.reconnect_timeout)
        while True:
            now = self.clock.now
            try:
                yield from self.server.connect()
                break
            except Failed:
                if attempt.time_to_give_up(now):
                    self.nconns -= 1
                    self._growing = self._growing and not growing
                    return
                attempt.update_delay(now)
                yield attempt.delay
        self.checkin()
        if growing:
            self._growing = False
            if self.waiters:
                self.grow()


@dataclass
class Fleet:
    """What became of the requests of all instances."""

    clock: Clock
    think: float
    hold: float
    failures: list[float] = field(default_factory=list)
    served: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    """When requests had their connection after more than `LATE` seconds."""
    first_served: dict[int, float] = field(default_factory=dict)

    def thread(self, instance: int, client: Client) -> Process:
        """Make requests, for ever."""
        while True:
            yield random.expovariate(1 / self.think)
            asked = self.clock.now
            try:
                yield from client.checkout()
            except Failed:
                self.failures.append(self.clock.now)
                continue
            if self.clock.now - asked > LATE:
                self.late.append(self.clock.now)
            yield self.hold
            client.checkin()
            self.served.append(self.clock.now)
            self.first_served.setdefault(instance, self.clock.now)

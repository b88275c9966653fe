"""Whether a pool can serve requests: checked at once, and once for all that ask together."""

from __future__ import annotations

import logging
import threading
from enum import Enum
from functools import partial
from time import monotonic, sleep
from typing import TYPE_CHECKING, TypeAlias

from django_pooled.activity import start_thread
from django_pooled.diagnostics.log_fields import event_fields

from .connect_errors import is_permanent_refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from .checkouts import Checkouts
    from .connector import Connector
    from .eviction import Eviction
    from .options import PoolOptions
    from .queue import RecoveringPool

__all__ = ["Readiness", "ReadinessCheck", "State"]

logger = logging.getLogger("django_pooled.pool")

FRESH = 0.5
"""Seconds for which the result of a check stands for later ones."""

STEP = 0.01
"""Seconds between two glances at a pool that something is about to happen to."""


class State(Enum):
    """What a check found, in words that tell a stranger nothing of the pool."""

    READY = "ready"
    BUSY = "busy"
    """No connection is idle, but those in use keep coming back."""
    PAUSED = "paused"
    """An operator has paused the pool for a while: requests wait, and are served then."""
    OPENING = "opening"
    """As the option ``open_at_start`` has it: ``min_size`` connections are not there yet."""
    SATURATED = "saturated"
    """All are in use, and for as long as a checkout may take none has come back."""
    AWAY = "server away"
    """No connection can be opened: the server is stopped, out of reach, or full."""
    REFUSED = "refused"
    """The server refuses connections, and waiting will not help."""
    SILENT = "no answer"
    """Nothing was heard of the server in time."""
    READ_ONLY = "read-only"
    """The server has refused a write, and still is read-only: reads are served."""
    CANNOT_WRITE = "cannot write"
    """The server is read-only, and the option ``read_only`` says that it must not be."""

    @property
    def serves(self) -> bool:
        """Whether requests can be served."""
        return self in (State.READY, State.BUSY, State.PAUSED, State.READ_ONLY)


Ping: TypeAlias = "Callable[[], bool | None]"
"""Tells whether an idle connection is alive; None if there is none."""


class ReadinessCheck:
    """One check of a pool, in a thread of its own: a caller waits no longer than it wants to."""

    def __init__(self, find_out: Callable[[], State]) -> None:
        self._over = threading.Event()
        # Written by the thread, before that is set:
        self._over_at = 0.0
        self._state = State.SILENT
        start_thread(partial(self._run, find_out), "readiness")

    def result(self, timeout: float) -> State:
        """Return what was found out; SILENT where that takes longer than *timeout* seconds."""
        self._over.wait(max(0.0, timeout))
        return self._state

    @property
    def is_stale(self) -> bool:
        """Whether it has been over for too long to be believed."""
        return self._over.is_set() and monotonic() - self._over_at >= FRESH

    def _run(self, find_out: Callable[[], State]) -> None:
        try:
            self._state = find_out()
        finally:
            self._over_at = monotonic()
            self._over.set()


class Readiness:
    """Whether one pool can serve.

    It never queues for a connection. It pings an idle one, while no thread waits for it. Without
    an idle one, it watches those that come back and that are being opened, and has one opened only
    if the pool has room and is opening none. So in an outage the server gets no more attempts than
    the pool's own probe makes, however many checks there are.

    Args:
        alias: The pool's alias, for log lines.
        options: The pool's: ``timeout`` is the longest that a checkout may take.
        connector: Opens the pool's connections, and knows whether the server is away.
        pool: The connections.
        checkouts: Which of them are in use.
        eviction: Knows whether the server is read-only.
    """

    def __init__(
        self,
        alias: str,
        options: PoolOptions,
        connector: Connector,
        pool: RecoveringPool,
        checkouts: Checkouts,
        eviction: Eviction,
    ) -> None:
        self._alias = alias
        self._timeout = options.timeout
        self._when_read_only = State.CANNOT_WRITE if options.read_only is False else State.READ_ONLY
        self._connector = connector
        self._pool = pool
        self._checkouts = checkouts
        self._eviction = eviction
        # Whether min_size connections were there at once, if that is to be waited for.
        self._is_filled = not options.open_at_start
        self._lock = threading.RLock()  # guards the check
        self._check: ReadinessCheck | None = None
        # Those of the check that is under way, and there is one at a time:
        self._last = State.READY
        self._not_ready_since = 0.0  # while the last one does not serve
        self._doubted_at = float("-inf")  # Older signs of life do not count.

    def check(self, timeout: float, ping: Ping) -> ReadinessCheck:
        """Begin a check, or join the one that is under way or has just ended.

        Args:
            timeout: Seconds that a new one waits for a connection that is being opened. An idle
                one that does not answer takes the pool's ``check_timeout`` to be given up, as at
                a checkout: to close it sooner would have a server that is slow log in more.
            ping: Makes a round trip on an idle connection.
        """
        with self._lock:
            if self._check is None or self._check.is_stale:
                deadline = monotonic() + timeout
                self._check = ReadinessCheck(lambda: self._note(self._find_out(deadline, ping)))
            return self._check

    def _find_out(self, deadline: float, ping: Ping) -> State:
        failures: int | None = None  # Those before the attempt to wait for; -1 without one.
        # Else the answer would come too late for the caller.
        filled_by = (monotonic() + deadline) / 2
        while True:
            if self._pool.pause is not None:
                # It resumes by itself. Out of rotation, its requests would fail instead of waiting.
                return State.PAUSED
            alive = ping() if self._has_been_filled() else None
            if alive:
                return State.READY
            if alive is None:
                if len(self._checkouts) >= self._pool.max_size:
                    return self._busy_or(State.SATURATED)
                if failures is None:
                    before = self._connector.failures
                    failures = before if self._pool.open_one() else -1
                trouble = self._connector.trouble
                if trouble is not None and self._connector.failures != failures:
                    refused = is_permanent_refusal(trouble)
                    return self._busy_or(State.REFUSED if refused else State.AWAY)
                if not self._is_filled:
                    if self._pool.in_place and monotonic() >= filled_by:
                        return State.OPENING
                    self._pool.open_one()
                sleep(STEP)
            else:
                self._doubted_at = monotonic()
            if monotonic() >= deadline:
                return self._busy_or(State.SILENT)

    def _has_been_filled(self) -> bool:
        self._is_filled = self._is_filled or self._pool.in_place >= self._pool.min_size
        return self._is_filled

    def _busy_or(self, state: State) -> State:
        """Judge a pool without an idle connection by the last one that came back alive.

        If that was within the time that a checkout may take, more are expected to come back, unless
        an idle one has failed to answer since.
        """
        came_back_at = max(
            (connection.session.idle_since for connection in self._checkouts.connections()),
            default=float("-inf"),
        )
        moves = came_back_at > max(monotonic() - self._timeout, self._doubted_at)
        return State.BUSY if moves else state

    def _note(self, state: State) -> State:
        if state.serves and self._eviction.read_only is not None:
            state = self._when_read_only
        if state is not self._last and not (state.serves and self._last.serves):
            if state.serves:
                outage = monotonic() - self._not_ready_since
                logger.warning(
                    "pool %r: ready again after %.1f s",
                    self._alias,
                    outage,
                    extra=event_fields("ready", alias=self._alias, outage=outage),
                )
            else:
                if self._last.serves:
                    self._not_ready_since = monotonic()
                logger.warning(
                    "pool %r: not ready: %s",
                    self._alias,
                    state.value,
                    extra=event_fields("not_ready", alias=self._alias, state=state.value),
                )
        self._last = state
        return state

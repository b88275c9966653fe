"""A connection to the first of several addresses that serves, as in Happy Eyeballs (RFC 8305)."""

from __future__ import annotations

import queue
import threading
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg

from .addresses import Addresses
from .connection import PooledConnection
from .host_memory import HostMemory
from .time_limit import in_a_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .addresses import Address
    from .host_memory import Turn

    Late = Callable[[PooledConnection], object]
    Outcome = tuple[Address, "PooledConnection | BaseException"]

__all__ = ["Hosts"]


class Hosts:
    """Connects for one pool, to whichever address serves, and remembers what each last was.

    psycopg tries one address after another, each for ``connect_timeout``: one that accepts and
    never answers, or that swallows packets, costs that much at each connect. Here the next one is
    tried after a moment, beside the first; the first that serves is taken, and is the first to be
    tried from then on. With a single address it is psycopg that connects, as ever.

    Args:
        name: The pool's alias, for log lines and the names of threads.
    """

    def __init__(self, name: str) -> None:
        self._thread_name = f"{name}-connects"
        self._addresses = Addresses(name)
        self._memory = HostMemory(name)

    def connect(self, parameters: Mapping[str, Any], limit: float, late: Late) -> PooledConnection:
        """Connect to one address.

        Args:
            parameters: psycopg's, which may have lists of hosts.
            limit: Seconds to wait for names to be resolved, if none is.
            late: Called with a connection that was opened after the error was raised.

        Raises:
            psycopg.Error: None serves; with several, the message has what each has said.
        """
        found, failed = self._addresses.of(parameters, limit)
        if len(found) == 1 and not failed:
            return PooledConnection.connect(**found[0][1])
        race = _Race(self._memory, dict(found), dict(failed), in_a_thread(self._thread_name), late)
        try:
            return race.run()
        finally:
            # Else the frame of an error would hold it, and threads that go on.
            del race


class _Started(NamedTuple):
    """An attempt under way."""

    turn: Turn
    at: float

    def kept_silent(self, now: float) -> bool:
        """Tell whether it has had the time in which it was expected to answer."""
        return 0 < self.turn.delay <= now - self.at


class _Race:
    """One connect to several addresses; it ends with the first connection, or with an error."""

    def __init__(
        self,
        memory: HostMemory,
        parameters: dict[Address, Mapping[str, Any]],
        unresolved: dict[Address, psycopg.Error],
        start: Callable[[Callable[[], None]], None],
        late: Late,
    ) -> None:
        self._memory = memory
        self._parameters = parameters
        self._order = [*parameters, *unresolved]
        self._errors = unresolved
        self._fatal: BaseException | None = None
        self._start = start
        self._late = late
        self._under_way: dict[Address, _Started] = {}
        self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._lock = threading.Lock()  # guards both below; outcomes are put under it
        self._is_over = False
        self._is_won = False

    def run(self) -> PooledConnection:
        """Try all, and return the first connection.

        Raises:
            psycopg.Error: All have failed, or those that have not are silent.
        """
        turns, outstanding = self._memory.turns(self._parameters)
        turns.reverse()
        next_at = monotonic()
        while self._fatal is None:
            now = monotonic()
            while turns and now >= next_at:
                self._try(turn := turns.pop(), now)
                next_at = now + turn.delay
            wake_at = next_at if turns else self._ends_at()
            if not turns and wake_at is not None and now >= wake_at:
                break
            outcome = self._next_outcome(None if wake_at is None else wake_at - now)
            if outcome is None:
                continue
            address, connection = outcome[0], self._take(*outcome)
            del outcome
            if connection is not None:
                self._end(winner=address)
                return connection
            # Its answer is known: no need to wait for the next.
            next_at = monotonic()
        connection = self._end()
        if connection is not None:
            return connection
        if self._fatal is not None:
            raise self._fatal
        self._errors.update(self._silent(monotonic()))
        for address in outstanding:
            self._errors[address] = psycopg.errors.ConnectionTimeout("no answer yet")
        raise _of_all([(each, self._errors[each]) for each in self._order if each in self._errors])

    def _ends_at(self) -> float | None:
        """Return when the wait for the rest ends; None if nothing else is to be had."""
        if not self._under_way:
            return 0.0
        if not self._errors:
            # All are silent, and none has said what may be different the next time.
            return None
        return max(it.at + it.turn.patience for it in self._under_way.values())

    def _next_outcome(self, seconds: float | None) -> Outcome | None:
        try:
            return self._outcomes.get(timeout=None if seconds is None else max(0.0, seconds))
        except queue.Empty:
            return None

    def _take(
        self, address: Address, result: PooledConnection | BaseException
    ) -> PooledConnection | None:
        """Take note of an outcome; if it is a connection, return that."""
        began = self._under_way.pop(address).at
        if isinstance(result, PooledConnection):
            self._memory.succeeded(address, monotonic() - began)
            return result
        self._memory.failed(address, result, began)
        if isinstance(result, psycopg.Error):
            self._errors[address] = result
        else:
            # An error in the parameters, as a rule, which ends psycopg's attempts too.
            self._fatal = result
        return None

    def _try(self, turn: Turn, now: float) -> None:
        self._under_way[turn.address] = _Started(turn, now)
        self._start(partial(self._connect, turn.address, now))

    def _connect(self, address: Address, began: float) -> None:
        """Make one attempt; in a thread of its own."""
        made: list[PooledConnection | BaseException] = []
        try:
            made.append(PooledConnection.connect(**self._parameters[address]))
        except BaseException as error:
            # Its frames hold this one, which holds it.
            made.append(error.with_traceback(None))
        with self._lock:
            if not self._is_over:
                # Not held by this frame any more: a connection is its user's.
                self._outcomes.put((address, made.pop()))
                return
        self._end_alone(address, began, made)

    def _end_alone(
        self, address: Address, began: float, made: list[PooledConnection | BaseException]
    ) -> None:
        """End an attempt that nothing waits for any more."""
        result = made.pop()
        if not isinstance(result, PooledConnection):
            self._memory.failed(address, result, began)
        else:
            self._memory.succeeded(address, monotonic() - began)
        self._memory.ended(address)
        if isinstance(result, PooledConnection):
            if self._is_won:
                result.close()
            else:
                self._late(result)

    def _end(self, winner: Address | None = None) -> PooledConnection | None:
        """Leave the attempts that are under way to themselves.

        Returns:
            A connection that has come at the last moment, where there is no winner.
        """
        now, late, connection = monotonic(), [], None
        with self._lock:
            self._is_over = True
            while (outcome := self._next_outcome(0.0)) is not None:
                late.append(outcome)
            came = {address: isinstance(result, PooledConnection) for address, result in late}
            self._is_won = winner is not None or any(came.values())
            for address, it in self._under_way.items():
                if address not in came:
                    self._memory.left(address, it.at, silent=it.kept_silent(now))
        while late:
            address = late[-1][0]
            found = self._take(*late.pop())
            if found is not None and winner is None:
                winner, connection = address, found
            elif found is not None:
                found.close()
        if winner is not None:
            for address, error in {**self._errors, **self._silent(now)}.items():
                self._memory.passed_over(address, winner, error)
        return connection

    def _silent(self, now: float) -> dict[Address, psycopg.Error]:
        return {
            address: psycopg.errors.ConnectionTimeout(f"no answer after {now - it.at:.1f} s")
            for address, it in self._under_way.items()
            if it.kept_silent(now) or not self._is_won
        }


def _of_all(errors: list[tuple[Address, psycopg.Error]]) -> psycopg.Error:
    """Make one error of those of all addresses, in the words of psycopg."""
    last = errors[-1][1]
    if len(errors) == 1:
        return last
    lines = [f"- {address.description}: {error}" for address, error in errors]
    text = "\n".join([str(last), "Multiple connection attempts failed. All failures were:", *lines])
    return type(last)(text, pgconn=last.pgconn)

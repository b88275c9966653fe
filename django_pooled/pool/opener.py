"""One attempt to open a connection, in steps that each have a time limit."""

from __future__ import annotations

from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.pq import TransactionStatus

from .cancellation import interrupt
from .connect_errors import AttemptFailed, AttemptHung, is_mistake, refuses_credentials
from .connection import PooledConnection
from .hosts import Hosts
from .psycopg_private import connect_timeout_of
from .time_limit import LEAVE, in_a_thread, over_within, start

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Future
    from weakref import WeakMethod

    from .credentials import FetchedAnew
    from .time_limit import LeftBehind

    Late = Callable[[PooledConnection, float], object]

__all__ = ["Opener"]

MARGIN = 1.0
"""Seconds by which an attempt outlasts psycopg's own time limit, so that psycopg tells which of
several hosts kept silent. It looks at the clock every 0.1 seconds."""


class _Attempt:
    """How far an attempt has got; written by its thread, read by that which waits for it.

    But for `interrupted`, which is the other way round: it is read once the attempt is over.
    """

    def __init__(self, limit: float) -> None:
        self.connection: PooledConnection | None = None
        self.interrupted: bool = False
        self.enter("the credentials", limit)

    def enter(self, step: str, limit: float) -> None:
        """Note that another step begins."""
        # In one assignment, since two threads see it.
        self.now: tuple[str, float, float] = (step, limit, monotonic() + limit)

    @property
    def left(self) -> float:
        """Seconds left to the step under way."""
        return self.now[2] - monotonic()


class Opener:
    """Opens connections for one pool.

    Each step has ``connect_timeout``: the credentials, the connect to each host, the configuration,
    the signal. An attempt runs in a thread of its own. One that takes longer is given up: a thread
    that waits for the server finds its connection lost. A wait of the project's own code cannot be
    ended from outside; such a thread stays behind until the code returns.

    Args:
        name: The pool's name, for the names of threads.
        credentials: Returns psycopg's connection parameters, with credentials that were fetched.
        configure: Called with each new connection.
        opened: Called at last, with the seconds that it all took.
        connect_timeout: As in psycopg's connection parameters.
        left_behind: Counts the threads that could not be ended.
        connect: Connects in place of psycopg, as the option of the pool.
    """

    def __init__(
        self,
        name: str,
        credentials: FetchedAnew,
        configure: Callable[[PooledConnection], object],
        opened: Callable[[float], object],
        connect_timeout: Any,
        left_behind: LeftBehind,
        connect: Callable[..., Any] | None = None,
    ) -> None:
        self._thread_name = f"{name}-connects"
        self._credentials = credentials
        self._configure = configure
        self._opened = opened
        self._connect_timeout = connect_timeout
        self._left_behind = left_behind
        self._hosts = Hosts(name)
        self._connect_instead = connect

    def open(self, late: WeakMethod[Late]) -> PooledConnection:
        """Open one connection.

        Args:
            late: Called with a connection that was opened after all, when its attempt had been
                given up, and with the seconds that it took.

        Raises:
            AttemptHung: A step took too long.
            AttemptFailed: The project's own code failed.
            psycopg.Error: The connect or the configuration failed.
        """
        limit = connect_timeout_of({"connect_timeout": self._connect_timeout})
        began = monotonic()
        attempt = _Attempt(limit)
        future = start(partial(self._attempt, attempt, limit, late), in_a_thread(self._thread_name))
        while not over_within(future, attempt.left):
            if attempt.left <= 0:
                raise self._given_up(attempt, future, partial(_hand_over, attempt, late, began))
        return future.result()

    def _attempt(self, attempt: _Attempt, limit: float, late: WeakMethod[Late]) -> PooledConnection:
        began = monotonic()
        keep = partial(self._keep_late, late, began)
        parameters = self._fetched()
        try:
            connection = self._connect(attempt, parameters, limit, keep)
        except psycopg.Error as error:
            if not (
                refuses_credentials(error) and self._credentials.refused(parameters, since=began)
            ):
                raise
            connection = None
        if connection is None:
            # Those were kept from before, and newer ones may do.
            attempt.enter("the credentials", limit)
            connection = self._connect(attempt, self._fetched(), limit, keep)
        try:
            attempt.connection = connection
            attempt.enter("the connection's configuration", limit)
            self._configured(connection)
            attempt.enter("the receivers of connection_opened", limit)
            self._announced(monotonic() - began)
        except BaseException:
            connection.close()
            raise
        return connection

    def _fetched(self) -> Mapping[str, Any]:
        try:
            return self._credentials()
        except AttemptHung:
            raise
        except BaseException as error:
            raise AttemptFailed(
                "fetching the credentials", error, permanent=is_mistake(error)
            ) from error

    def _connect(
        self,
        attempt: _Attempt,
        parameters: Mapping[str, Any],
        limit: float,
        late: Callable[[PooledConnection], object],
    ) -> PooledConnection:
        attempt.enter("the server", limit * _hosts(parameters) + MARGIN)
        if self._connect_instead is None:
            return self._hosts.connect(parameters, limit, late)
        try:
            made = self._connect_instead(**parameters)
            return PooledConnection.adopt(made, parameters)
        except psycopg.Error:
            raise
        except BaseException as error:
            raise AttemptFailed(
                "OPTIONS['pool']['connect']", error, permanent=is_mistake(error)
            ) from error

    def _keep_late(
        self, late: WeakMethod[Late], began: float, connection: PooledConnection
    ) -> None:
        """Hand over a connection to a host that was not waited for any more."""
        try:
            self._configured(connection)
            self._announced(monotonic() - began)
        except Exception:
            # The next attempt meets it too, and tells it.
            connection.close()
            return
        keep = late()
        if keep is None:
            connection.close()
        else:
            keep(connection, monotonic() - began)

    def _configured(self, connection: PooledConnection) -> None:
        try:
            self._configure(connection)
        except Exception:
            raise
        except BaseException as error:
            # Cancelled, interrupted or asked to exit: that must not end the pool's thread.
            raise AttemptFailed("the connection's configuration", error) from error
        status = connection.info.transaction_status
        if status != TransactionStatus.IDLE:
            raise psycopg.ProgrammingError(
                f"the connection's configuration left it in status {status.name}; expected IDLE: "
                f"a transaction that it begins has to end there"
            )

    def _announced(self, took: float) -> None:
        try:
            self._opened(took)
        except BaseException as error:
            raise AttemptFailed("a receiver of connection_opened", error) from error

    def _given_up(
        self,
        attempt: _Attempt,
        future: Future[PooledConnection],
        over: Callable[[Future[PooledConnection]], None],
    ) -> AttemptHung:
        step, limit, _ = attempt.now
        if attempt.connection is not None:
            attempt.interrupted = True
            interrupt(attempt.connection)
            over_within(future, LEAVE)
        wait = self._left_behind.add(future, limit)
        future.add_done_callback(over)
        return AttemptHung(f"given up after {limit:g} s of waiting for {step}", wait)


def _hand_over(
    attempt: _Attempt,
    late: WeakMethod[Late],
    began: float,
    future: Future[PooledConnection],
) -> None:
    if future.exception() is not None:
        return  # It has been counted when it was given up.
    connection, keep = future.result(), late()
    if attempt.interrupted or keep is None:
        connection.close()
    else:
        keep(connection, monotonic() - began)


def _hosts(parameters: Mapping[str, Any]) -> int:
    """Count the hosts that psycopg tries one after another, each for ``connect_timeout``.

    A name may stand for several addresses. An attempt that is given up between two of them goes on,
    and its connection may still be used.
    """
    return str(parameters.get("hostaddr") or parameters.get("host") or "").count(",") + 1

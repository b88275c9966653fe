"""Asks one database over a connection of its own, never through the site's pool."""

from __future__ import annotations

import contextlib
from functools import partial
from math import ceil
from time import monotonic
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import psycopg

from django_pooled.activity import start_thread
from django_pooled.backend.credentials import connect_aside
from django_pooled.diagnostics.redaction import told
from django_pooled.poolstats.formatting import brief
from django_pooled.sql.sqlstates import CONNECTION_LOST

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from django.db.backends.base.base import BaseDatabaseWrapper

__all__ = ["NoAnswer", "Probe"]

T = TypeVar("T")


class NoAnswer(Exception):
    """The database could not be asked; the message says why, in one line."""


class Probe(Generic[T]):
    """One question to one database, asked once or again and again.

    It is asked in a thread, so that a name that does not resolve or a frozen server delays nothing
    else.

    Args:
        wrapper: Whose connection parameters are used; it is not connected itself.
        question: Called with the connection, in a transaction that can't last longer than the
            time limit; returns the answer.
        application_name: Name of the session in ``pg_stat_activity``.
        logged_in: Called with a new connection, before anything is asked.
    """

    def __init__(
        self,
        wrapper: BaseDatabaseWrapper,
        question: Callable[[psycopg.Connection[Any]], T],
        application_name: str,
        logged_in: Callable[[psycopg.Connection[Any]], object] = lambda connection: None,
    ) -> None:
        self.alias = wrapper.alias
        self._wrapper = wrapper
        self._question = question
        self._application_name = application_name
        self._logged_in = logged_in
        self._connection: psycopg.Connection[Any] | None = None
        self._thread: threading.Thread | None = None
        self._answer: list[T] = []
        self._error = ""
        self.first_wait: float = 0.0
        """Seconds until the first statement of the last answer was done."""
        self.rest: float = 0.0
        """Seconds that the others took together."""

    def start(self, timeout: float) -> None:
        """Begin to ask, unless the last question is still open."""
        if self._thread is None or not self._thread.is_alive():
            self._answer.clear()
            self._error = f"nothing came within {timeout:g} s"
            name = f"django_pooled.asks.{self.alias}"
            self._thread = start_thread(partial(self._ask, timeout), name)

    def wait(self, timeout: float) -> T:
        """Return the answer.

        Raises:
            NoAnswer: It did not come within that many seconds, or could not be had.
        """
        if self._thread is None:
            raise NoAnswer(self._error)
        self._thread.join(max(0.0, timeout))
        if self._thread.is_alive() or not self._answer:
            raise NoAnswer(self._error)
        return self._answer[0]

    @property
    def is_asking(self) -> bool:
        """Whether a question is open."""
        return self._thread is not None and self._thread.is_alive()

    def close(self) -> None:
        """Close the connection; one that is still waiting for its server ends with the process."""
        if self._connection is not None and not (self._thread and self._thread.is_alive()):
            self._connection.close()
            self._connection = None

    def _ask(self, timeout: float) -> None:
        try:
            self._answer.append(self._put_over(self._connection, timeout))
        # A callable for the password may raise anything.
        except Exception as error:
            if self._connection is not None:
                with contextlib.suppress(psycopg.Error):
                    self._connection.close()
                self._connection = None
            self._error = brief(told(error))
            self._failed(error)

    def _put_over(self, kept: psycopg.Connection[Any] | None, timeout: float) -> T:
        if kept is not None and not kept.closed:
            try:
                return self._put(kept, timeout)
            except psycopg.OperationalError as error:
                # Ended since the last question, which says nothing of the server by now.
                if error.sqlstate not in {None, *CONNECTION_LOST}:
                    raise
                kept.close()
        self._connection = self._connect(timeout)
        self._logged_in(self._connection)
        return self._put(self._connection, timeout)

    def _put(self, connection: psycopg.Connection[Any], timeout: float) -> T:
        started = monotonic()
        with connection.transaction():
            begun = monotonic()
            # LOCAL, so that behind PgBouncer it does not stay with another client's session.
            connection.execute(f"SET LOCAL statement_timeout = {ceil(timeout * 1000)}")
            answer = self._question(connection)
        self.first_wait, self.rest = begun - started, monotonic() - begun
        return answer

    def _connect(self, timeout: float) -> psycopg.Connection[Any]:
        return connect_aside(
            self._wrapper.settings_dict,
            self._wrapper.get_connection_params(),
            connect_timeout=max(2, ceil(timeout)),
            **self._own_parameters(),
        )

    def _own_parameters(self) -> dict[str, Any]:
        """Return what is not as in the settings."""
        return {"application_name": self._application_name, "prepare_threshold": None}

    def _failed(self, error: Exception) -> None:
        """Take note of why there is no answer."""

"""Faults that tests order: each strikes an attempt for real, at a given moment of it."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import psycopg

from .attempt import Attempt
from .loop import Seams

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django_pooled.backend.wrapper import DatabaseWrapper
    from django_pooled.pool.connection import PooledConnection

    from .policy import Policy

__all__ = ["Fault", "Moment", "ordered"]

Moment = Literal["begin", "body", "commit", "answer"]
R = TypeVar("R")


# Two orders may be alike, and are not the same.
@dataclass(eq=False)
class Fault:
    """One fault: when it strikes, and how often it still does."""

    using: str
    moment: Moment
    sqlstate: str | None
    times: int
    struck: int = 0

    def strike(self, wrapper: DatabaseWrapper) -> None:
        """Make it happen, for real: by the server's own error or the loss of the session.

        Without effect once it has struck as often as it should.

        Raises:
            django.db.Error: As the driver's would have become one.
        """
        with _lock:
            # Attempts of several threads may have it.
            if not self.times:
                return
            self.times -= 1
            self.struck += 1
        connection: PooledConnection = wrapper.connection
        with wrapper.wrap_database_errors:
            if self.sqlstate is not None:
                connection.ask(
                    f"DO $$ BEGIN RAISE EXCEPTION 'ordered by a test' "
                    f"USING ERRCODE = '{self.sqlstate}'; END $$"
                )
            connection.close()
            raise psycopg.OperationalError("the connection is lost, as ordered by a test")


_lock = threading.Lock()
_ordered: tuple[Fault, ...] = ()  # replaced, and their counts changed, under the lock


class _FailingAttempt(Attempt):
    """An attempt in which a fault strikes that was ordered."""

    fault: Fault


class _FailingAtBegin(_FailingAttempt):
    def run(self, call: Callable[[], R]) -> R:
        def struck() -> R:
            self.fault.strike(self.wrapper)
            return call()

        return super().run(struck)


class _FailingInBody(_FailingAttempt):
    def _settle(self, result: object) -> None:
        self.returned = result
        self.fault.strike(self.wrapper)
        super()._settle(result)


class _FailingAtCommit(_FailingAttempt):
    def _send_commit(self, send: Callable[[], None]) -> None:
        self.fault.strike(self.wrapper)
        super()._send_commit(send)


class _LosingTheAnswer(_FailingAttempt):
    def _send_commit(self, send: Callable[[], None]) -> None:
        super()._send_commit(send)
        self.fault.strike(self.wrapper)


_FAILING: dict[Moment, type[_FailingAttempt]] = {
    "begin": _FailingAtBegin,
    "body": _FailingInBody,
    "commit": _FailingAtCommit,
    "answer": _LosingTheAnswer,
}
"""By the moment, in the order in which an attempt comes to them."""


def _attempt(policy: Policy, wrapper: DatabaseWrapper, *args: Any) -> Attempt:
    """Make an attempt, with the first fault that is due in it."""
    for moment, failing in _FAILING.items():
        for fault in _ordered:
            if fault.times and fault.using == wrapper.alias and fault.moment == moment:
                attempt = failing(policy, wrapper, *args)
                attempt.fault = fault
                return attempt
    return Attempt(policy, wrapper, *args)


@contextmanager
def ordered(fault: Fault) -> Iterator[Fault]:
    """Have *fault* strike the next attempts that it is for, in any thread, within the block."""
    global _ordered
    with _lock:
        _ordered += (fault,)
        Seams.attempt = _attempt
    try:
        yield fault
    finally:
        with _lock:
            _ordered = tuple(each for each in _ordered if each is not fault)
            if not _ordered:
                Seams.attempt = Attempt

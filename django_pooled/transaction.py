"""``@retry_transaction``: a whole transaction, run again from its start when that is safe."""

from __future__ import annotations

import inspect
import logging
import re
import sys
import time
from dataclasses import dataclass
from functools import partial, wraps
from time import monotonic
from typing import TYPE_CHECKING, ParamSpec, TypeVar, overload

from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS, connections
from django.db.transaction import TransactionManagementError, atomic

from .backoff import Backoff
from .base import DatabaseWrapper
from .commit import Attempt, Phase
from .sqlstates import READ_ONLY, SERIALIZATION, is_connection_lost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from psycopg import IsolationLevel

__all__ = ["retry_transaction"]

logger = logging.getLogger("django_pooled.retry")

P = ParamSpec("P")
R = TypeVar("R")

COMMIT_CHECKS = ("xid", "raise")

BACKOFF = Backoff(initial=0.025, maximum=1.0)
"""Measured best on a contended row: fewer attempts and a lower p99 than immediate repetition."""


@overload
def retry_transaction(function: Callable[P, R], /) -> Callable[P, R]: ...
@overload
def retry_transaction(
    *,
    using: str = ...,
    max_attempts: int = ...,
    deadline: float = ...,
    isolation_level: IsolationLevel | None = ...,
    read_only: bool | None = ...,
    retry_on: Iterable[str] = ...,
    commit_check: str = ...,
    backoff: Backoff = ...,
    sleep: Callable[[float], None] = ...,
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
def retry_transaction(
    function: Callable[P, R] | None = None,
    /,
    *,
    using: str = DEFAULT_DB_ALIAS,
    max_attempts: int = 5,
    deadline: float = 30.0,
    isolation_level: IsolationLevel | None = None,
    read_only: bool | None = None,
    retry_on: Iterable[str] = (),
    commit_check: str = "xid",
    backoff: Backoff = BACKOFF,
    sleep: Callable[[float], None] = time.sleep,
) -> Callable[P, R] | Callable[[Callable[P, R]], Callable[P, R]]:
    """Run a callable in a transaction, and all of it again after a retryable failure.

    Retryable are serialization failures and deadlocks (SQLSTATE 40001, 40P01), also when COMMIT
    raises them, the loss of the connection before COMMIT was sent, and a server that turned
    read-only (25006). A COMMIT whose answer was lost is looked up on the server: committed is
    success, aborted is run again. Saturation of the pool is never retried.

    The decorated callable opens the transaction itself. Under ``ATOMIC_REQUESTS`` it replaces
    the handler's own; decorate a class-based view's ``dispatch``, by ``method_decorator``. Called
    within another call decorated for the same database, it joins that one's transaction.

    Args:
        using: Key of the database in ``settings.DATABASES``.
        max_attempts: Most runs, the first included.
        deadline: Seconds from the first attempt after which no other is started.
        isolation_level: Of the transaction; None for the connection's own. Without effect in a
            ``TestCase``, whose transaction has begun.
        read_only: Whether the transaction is ``READ ONLY``; None for the session's default.
        retry_on: Further SQLSTATEs that are worth another attempt, such as ``"23505"``.
        commit_check: "xid" as above, or "raise" to raise `AmbiguousCommit` whenever the answer
            to COMMIT was lost.
        backoff: Waits between attempts.
        sleep: Waits the given seconds; tests pass their own.

    Raises:
        TransactionManagementError: Called inside an ``atomic`` block, which it could not restart.
        AmbiguousCommit: Whether the transaction was committed cannot be told.
        ImproperlyConfigured: The database's ENGINE is not django_pooled.
        TypeError, ValueError: At decoration, for a callable or argument that cannot work.

    The callable's own exceptions pass through; the last one bears a note of the attempts made.
    """
    policy = _Policy(
        using=using,
        max_attempts=max_attempts,
        deadline=deadline,
        isolation_level=isolation_level,
        read_only=read_only,
        retry_on=_sqlstates(retry_on),
        commit_check=commit_check,
        backoff=backoff,
        sleep=sleep,
    )
    return policy.decorate if function is None else policy.decorate(function)


@dataclass(frozen=True)
class _Policy:
    using: str
    max_attempts: int
    deadline: float
    isolation_level: IsolationLevel | None
    read_only: bool | None
    retry_on: frozenset[str]
    commit_check: str
    backoff: Backoff
    sleep: Callable[[float], None]

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts is {self.max_attempts!r}; expected 1 or more")
        if self.deadline <= 0:
            raise ValueError(f"deadline is {self.deadline!r}; expected seconds above 0")
        if self.commit_check not in COMMIT_CHECKS:
            raise ValueError(
                f"commit_check is {self.commit_check!r}; expected one of {', '.join(COMMIT_CHECKS)}"
            )

    def decorate(self, function: Callable[P, R]) -> Callable[P, R]:
        _refuse_what_cannot_be_run_again(function)

        @wraps(function)
        def run_again(*args: P.args, **kwargs: P.kwargs) -> R:
            return self.run(partial(function, *args, **kwargs))

        # Where the handler looks whether to open a transaction of its own (ATOMIC_REQUESTS):
        # the attribute behind django.db.transaction.non_atomic_requests().
        theirs: set[str] = getattr(function, "_non_atomic_requests", set())
        run_again._non_atomic_requests = theirs | {self.using}  # type: ignore[attr-defined]
        return run_again

    def run(self, call: Callable[[], R]) -> R:
        wrapper = self._wrapper()
        if wrapper.attempt is not None and wrapper.in_atomic_block:
            return call()
        _refuse_foreign_transaction(wrapper)
        started = monotonic()
        deadline = started + self.deadline
        number = 1
        while True:
            attempt = Attempt(deadline, self.commit_check, self.sleep)
            try:
                return self._try(wrapper, attempt, call)
            except Exception as error:
                reason = self._reason_to_restart(attempt, error)
                if reason is None:
                    raise
                wait = self.backoff.wait(number)
                now = monotonic()
                if number == self.max_attempts or now + wait >= deadline:
                    elapsed = now - started
                    _add_note(
                        error, f"retry_transaction: {number} attempts failed in {elapsed:.2f} s"
                    )
                    raise
                name = getattr(getattr(call, "func", call), "__qualname__", "?")
                logger.warning(
                    "database %r: %s restarts %s after attempt %d, in %.3f s",
                    self.using, reason, name, number, wait,
                )  # fmt: skip
                pool = wrapper.pool
                if pool is not None:
                    pool.count_restart(reason)
            # Others may use the connection meanwhile.
            if not wrapper.in_atomic_block:
                wrapper.close()
            self.sleep(wait)
            number += 1

    def _try(self, wrapper: DatabaseWrapper, attempt: Attempt, call: Callable[[], R]) -> R:
        wrapper.attempt = attempt
        wrapper.rollback_exc = None
        try:
            if not wrapper.in_atomic_block:
                self._characterize(wrapper)
            with atomic(using=self.using, durable=True):
                try:
                    result = call()
                except Exception as error:
                    attempt.note_raised(wrapper, error)
                    raise
                attempt.refuse_silent_rollback(wrapper)
            return result
        finally:
            wrapper.attempt = None
            self._restore(wrapper)

    def _characterize(self, wrapper: DatabaseWrapper) -> None:
        # psycopg puts both into the BEGIN that it sends with the first statement.
        if self.isolation_level is None and self.read_only is None:
            return
        wrapper.ensure_connection()
        with wrapper.wrap_database_errors:
            if self.isolation_level is not None:
                wrapper.connection.isolation_level = self.isolation_level
            if self.read_only is not None:
                wrapper.connection.read_only = self.read_only

    def _restore(self, wrapper: DatabaseWrapper) -> None:
        connection = wrapper.connection
        if connection is None or connection.closed or wrapper.in_atomic_block:
            return
        if self.isolation_level is not None:
            configured = "isolation_level" in wrapper.settings_dict["OPTIONS"]
            connection.isolation_level = wrapper.isolation_level if configured else None
        if self.read_only is not None:
            connection.read_only = None

    def _reason_to_restart(self, attempt: Attempt, error: Exception) -> str | None:
        """Return the SQLSTATE (or 'lost') for which the attempt is worth another; None if not."""
        if attempt.phase in (Phase.COMMITTED, Phase.UNKNOWN):
            return None
        # Only errors of this database's own connection: what another one did is not undone.
        for found in attempt.errors_behind(error):
            sqlstate = found.sqlstate
            if sqlstate in SERIALIZATION or sqlstate in self.retry_on:
                return sqlstate
            if sqlstate == READ_ONLY and not self.read_only:
                return sqlstate
            if is_connection_lost(found):
                return sqlstate or "lost"
        return None

    def _wrapper(self) -> DatabaseWrapper:
        wrapper = connections[self.using]
        if not isinstance(wrapper, DatabaseWrapper):
            engine = wrapper.settings_dict["ENGINE"]
            raise ImproperlyConfigured(
                f"retry_transaction(using={self.using!r}) needs ENGINE 'django_pooled'; "
                f"DATABASES[{self.using!r}]['ENGINE'] is {engine!r}."
            )
        return wrapper


def _refuse_foreign_transaction(wrapper: DatabaseWrapper) -> None:
    blocks = wrapper.atomic_blocks
    if wrapper.in_atomic_block and not all(
        getattr(block, "_from_testcase", False) for block in blocks
    ):
        raise TransactionManagementError(
            f"retry_transaction was called inside an atomic block on {wrapper.alias!r}, which it "
            f"could not run again from its start. Decorate the outermost function instead; for a "
            f"class-based view under ATOMIC_REQUESTS that is dispatch: "
            f"@method_decorator(retry_transaction, name='dispatch')."
        )
    if not wrapper.in_atomic_block and not wrapper.get_autocommit():
        raise TransactionManagementError(
            f"retry_transaction was called with autocommit off on {wrapper.alias!r}; it opens and "
            f"ends its transaction itself."
        )


def _refuse_what_cannot_be_run_again(function: object) -> None:
    name = getattr(function, "__qualname__", repr(function))
    if inspect.isclass(function):
        raise TypeError(
            f"retry_transaction cannot decorate the class {name}; for a "
            f"class-based view use @method_decorator(retry_transaction, name='dispatch')."
        )
    if not callable(function):
        raise TypeError(f"retry_transaction decorates a callable, not {function!r}.")
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(
            f"{name} is async, and Django's transactions are not: decorate a "
            f"sync function and call it by asgiref.sync.sync_to_async."
        )
    if inspect.isgeneratorfunction(function):
        raise TypeError(
            f"{name} is a generator, which would run after its transaction ended: return a list."
        )


def _sqlstates(given: Iterable[str]) -> frozenset[str]:
    found = frozenset([given] if isinstance(given, str) else given)
    for sqlstate in found:
        if not isinstance(sqlstate, str) or not re.fullmatch("[0-9A-Z]{5}", sqlstate):
            raise ValueError(
                f"retry_on has {sqlstate!r}; expected SQLSTATEs, five digits or capitals each"
            )
    return found


def _add_note(error: BaseException, note: str) -> None:
    if sys.version_info >= (3, 11):
        error.add_note(note)

"""The attempts of one call: each a whole transaction, until one succeeds or none is left."""

from __future__ import annotations

from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import psycopg
from django.db import Error

from django_pooled.backend.commit import ambiguous
from django_pooled.replay import Inputs, copy_of
from django_pooled.sql.sqlstates import is_refusal

from . import commit_checks
from .attempt import Attempt
from .budget import budget_of
from .caller_state import CallerState
from .classify import Classification
from .deadline import earliest
from .phase import Phase
from .prepared_transactions import roll_back_prepared
from .report import Refusal, Report
from .server_identity import learn_anew

if TYPE_CHECKING:
    from collections.abc import Callable

    from django_pooled.backend.wrapper import DatabaseWrapper

    from .classify import Failure
    from .policy import Policy
    from .transaction_status import TransactionIdentity

__all__ = ["Loop"]

R = TypeVar("R")


_NOT_TO_BE_REPEATED = (Phase.COMMIT_SENT, Phase.COMMITTED, Phase.UNKNOWN)


def sleep(policy: Policy, seconds: float) -> None:
    """Wait between two attempts."""
    policy.sleep(seconds)


class Seams:
    """What `django_pooled.testing` replaces, for all threads."""

    attempt: type[Attempt] = Attempt
    sleep: Callable[[Policy, float], None] = staticmethod(sleep)


class Loop(Generic[R]):
    """The attempts of one call.

    Args:
        policy: How to try.
        wrapper: On which database, outside a transaction.
        function: What to call in each attempt, and with what.
    """

    def __init__(
        self,
        policy: Policy,
        wrapper: DatabaseWrapper,
        function: Callable[..., R],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self._policy = policy
        self._wrapper = wrapper
        self._function = function
        self._call = partial(function, *args, **kwargs)
        self._inputs = Inputs(function, args, kwargs)
        self._caller_state = CallerState(wrapper)
        check = policy.commit_check
        self._check = commit_checks.make(
            check
            if isinstance(check, str)
            # A body may empty a list that it was given.
            else partial(check, *copy_of(args), **copy_of(kwargs))
        )
        self._left_open: TransactionIdentity | None = None
        self._rolled_back: object = None
        """What an attempt has returned that had written something, and was rolled back."""
        self._await_bodies()
        self._report = Report(policy.using, function)
        self._deadline = earliest(monotonic() + policy.deadline)

    def run(self) -> R:
        """Try until an attempt succeeds, or until there is no sense in another."""
        try:
            result = self._run()
        except BaseException:
            self._report.ended("failed")
            raise
        self._report.ended("committed")
        return result

    def _run(self) -> R:
        policy, number = self._policy, 1
        while True:
            self._check.prepare(self._wrapper)
            attempt = Seams.attempt(policy, self._wrapper, self._check, self._deadline)
            attempt.left_open, self._left_open = self._left_open, None
            attempt.rolled_back = self._rolled_back
            try:
                with self._inputs.recording():
                    result = attempt.run(self._call, self._report.name)
            except Exception as error:
                self._report.pool = attempt.pool or self._report.pool
                if attempt.was_ended and attempt.watch is not None:
                    roll_back_prepared(self._wrapper, attempt.watch.identity)
                if self._was_asked_too_much(attempt, error):
                    continue
                wait = policy.backoff.wait(number)
                failure = self._worth_another(attempt, error)
                refusal = self._refusal(attempt, number, wait) if failure is not None else None
                if refusal is not None:
                    self._report.refused(error, number, refusal)
                if failure is None or refusal is not None:
                    if self._check.has_guessed:
                        # It would read as if nothing had happened.
                        raise ambiguous(self._wrapper) from error
                    raise
                self._rolled_back = attempt.returned if attempt.has_written else None
                self._left_open = attempt.abandoned if failure.lost else None
                self._report.restarts(error, failure, number, wait)
            else:
                self._report.pool = attempt.pool
                self._succeeded()
                return result
            # Others may use the connection meanwhile, unless the caller has something on it.
            self._give_back()
            Seams.sleep(policy, wait)
            number += 1

    def _await_bodies(self) -> None:
        """Wait for clients that still send their requests, without a connection if possible."""
        if self._inputs.are_to_come:
            self._give_back()
            self._inputs.await_bodies()

    def _was_asked_too_much(self, attempt: Attempt, error: Exception) -> bool:
        """Tell whether an attempt failed by a question of ours, which is not asked any more.

        It was no fault of the caller's, and counts for nothing: the call begins anew.
        """
        failure = attempt.cause(error)
        if (
            failure is None
            or failure.lost
            or attempt.questions is None
            or not (is_refusal(failure.error) or self._check.is_to_blame(failure.error))
            or attempt.phase in _NOT_TO_BE_REPEATED
            or monotonic() >= self._deadline
        ):
            return False
        try:
            self._wrapper.ensure_connection()
            connection = self._wrapper.connection
            refused = learn_anew(connection, attempt.questions)
            if not refused and self._check.is_to_blame(failure.error):
                refused = self._check.concede(connection, failure.error)
        except (psycopg.Error, Error):
            return False
        return refused and self._obstacle(attempt) is None

    def _worth_another(self, attempt: Attempt, error: Exception) -> Failure | None:
        """Return the failure for which the attempt is worth another; None if it is not.

        Raises:
            AmbiguousCommit: Whether the attempt took effect cannot be told.
        """
        if attempt.phase in _NOT_TO_BE_REPEATED:
            return None
        # Only errors of this database's own connection: what another one did is not undone.
        failure = attempt.cause(error)
        if failure is None:
            return None
        if self._check.proves_earlier_commit(failure.error):
            raise ambiguous(self._wrapper) from error
        self._check.refuse_to_go_without(failure.error, self._wrapper)
        meaning = attempt.classify(failure)
        if meaning is Classification.RAISE:
            return None
        if attempt.may_have_ended and not attempt.has_written:
            # There is no id to look it up by.
            raise ambiguous(self._wrapper) from error
        unclear = meaning is Classification.RESOLVE or attempt.may_have_ended
        if unclear and attempt.phase is not Phase.FAILED and attempt.resolve() is not Phase.FAILED:
            raise ambiguous(self._wrapper) from error
        return failure

    def _refusal(self, attempt: Attempt, number: int, wait: float) -> Refusal | None:
        """Return why there is no further attempt; None if there is, and the budget has paid."""
        pool = self._report.pool
        if number == self._policy.max_attempts:
            return Refusal("attempts", "that was the last of max_attempts")
        if monotonic() + wait >= self._deadline:
            return Refusal("deadline", "another would begin after the deadline")
        if obstacle := self._obstacle(attempt):
            return Refusal("other", obstacle)
        if pool is not None and not budget_of(pool).take(self._function):
            return Refusal("budget", "its part of the retry budget of this process is spent")
        return None

    def _obstacle(self, attempt: Attempt) -> str | None:
        """Return what makes another attempt impossible, however many are left."""
        if attempt.was_ended:
            return "a statement of its own has ended its transaction"
        if attempt.written_elsewhere:
            others = ", ".join(map(repr, sorted(attempt.written_elsewhere)))
            return f"it may have written to {others}, which a restart would not undo"
        if state := self._caller_state.lost:
            return f"session state of the caller ({state}) was lost with the connection"
        # A session may be put back by a query, which needs a connection that works.
        self._give_back()
        return self._inputs.obstacle_after_restoring()

    def _give_back(self) -> None:
        if not self._wrapper.in_atomic_block and not self._caller_state.keep_connection:
            self._wrapper.give_back()

    def _succeeded(self) -> None:
        pool = self._report.pool
        if pool is not None and pool.retry_budget is not None:
            pool.retry_budget.give(self._function)
        if not self._wrapper.in_atomic_block:
            self._check.succeeded(self._wrapper)
        if self._caller_state.lost:
            self._caller_state.refuse_to_go_on()

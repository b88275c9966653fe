"""The attempts of one call: each a whole transaction, until one succeeds or none is left."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import psycopg
from django.db import Error, connections
from django.db.transaction import TransactionManagementError, atomic

from django_pooled.replay import Inputs, copy_of
from django_pooled.replay.process_caches import forget_rows
from django_pooled.replay.responses import (
    asks_for_rollback,
    is_error_response,
    refuse_coroutine,
)
from django_pooled.sql.sqlstates import is_refusal

from . import commit_checks, fault_injection
from .attempt import Attempt, is_broken, is_idle, is_outermost
from .caller_state import Holdings
from .characteristics import set_characteristics
from .classify import Verdict, judge
from .commit import ambiguous, resolve
from .deadline import earliest
from .other_databases import watch_others
from .phase import Phase
from .prepared_transactions import roll_back_prepared
from .report import Refusal, Report
from .server_identity import learn_anew
from .transaction_status import end_if_idle

if TYPE_CHECKING:
    from collections.abc import Callable

    from django_pooled.backend.wrapper import DatabaseWrapper

    from .classify import Failure
    from .policy import Policy
    from .transaction_status import Testimony

__all__ = ["Series"]

R = TypeVar("R")


_NOT_TO_BE_REPEATED = (Phase.COMMIT_SENT, Phase.COMMITTED, Phase.UNKNOWN)


class Pause(Protocol):
    """Waits between two attempts."""

    def __call__(self, sleep: Callable[[float], None], seconds: float) -> None: ...


def _sleep(sleep: Callable[[float], None], seconds: float) -> None:
    sleep(seconds)


pause: Pause = _sleep
"""Replaced by `django_pooled.testing.no_waiting`."""


class Series(Generic[R]):
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
        self._holdings = Holdings(wrapper)
        check = policy.commit_check
        self._check = commit_checks.make(
            check
            if isinstance(check, str)
            # A body may empty a list that it was given.
            else partial(check, *copy_of(args), **copy_of(kwargs))
        )
        self._ghost: Testimony | None = None
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
            attempt = Attempt(
                self._deadline, self._check, policy.sleep, read_only=bool(policy.read_only)
            )
            try:
                with self._inputs.recording():
                    result = self._try(attempt)
            except Exception as error:
                if attempt.was_ended and attempt.rider is not None:
                    roll_back_prepared(self._wrapper, attempt.rider.testimony)
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
                self._ghost = attempt.rider.ghost if failure.lost and attempt.rider else None
                self._report.restarts(error, failure, number, wait)
            else:
                self._succeeded()
                return result
            # Others may use the connection meanwhile, unless the caller has something on it.
            self._give_back()
            pause(policy.sleep, wait)
            number += 1

    def _await_bodies(self) -> None:
        """Wait for clients that still send their requests, without a connection if possible."""
        if self._inputs.are_to_come:
            self._give_back()
            self._inputs.await_bodies()

    def _try(self, attempt: Attempt) -> R:
        wrapper = self._wrapper
        self._check.prepare(wrapper)
        self._lay_ghost()
        wrapper.attempt = attempt
        wrapper.rollback_exc = None
        inside = wrapper.in_atomic_block
        alone = len(connections.settings) == 1
        try:
            attempt.restore = set_characteristics(self._policy, wrapper)
            attempt.prepare(wrapper)
            with (
                nullcontext() if alone else watch_others(wrapper, attempt.written_elsewhere),
                atomic(using=self._policy.using, durable=True),
            ):
                attempt.begin(wrapper)
                self._report.pool = wrapper.checked_out_from
                try:
                    fault_injection.strike(wrapper, "begin")
                    result = self._call()
                    refuse_coroutine(result)
                    attempt.returned = result
                    self._refuse_what_was_remembered(result)
                    fault_injection.strike(wrapper, "body")
                    self._settle(attempt, result)
                except BaseException as error:
                    attempt.leave_blocks(wrapper)
                    if isinstance(error, Exception):
                        attempt.note_raised(wrapper, error)
                    raise
            if attempt.outermost and attempt.phase is not Phase.COMMITTED:
                self._refuse_lost_transaction(attempt)
                # The body has asked for a rollback.
                forget_rows()
        except BaseException:
            forget_rows()
            raise
        else:
            return result
        finally:
            attempt.end(wrapper)
            if wrapper.in_atomic_block and not inside:
                # An exception struck between two steps of Django's, as one from outside can.
                wrapper.abandon_block()

    def _refuse_lost_transaction(self, attempt: Attempt) -> None:
        """Refuse a result whose transaction was not committed, unless that was asked for.

        Raises:
            TransactionManagementError: It would read as success.
        """
        if not attempt.rollback_wanted:
            raise TransactionManagementError(
                f"{self._report.name} returned, but its transaction on {self._wrapper.alias!r} "
                f"was not committed: its atomic block was ended by other code."
            )

    def _lay_ghost(self) -> None:
        """End the backend of a lost connection if it knows nothing of that, for its locks."""
        ghost, self._ghost = self._ghost, None
        if ghost is not None and not self._wrapper.in_atomic_block:
            self._wrapper.ensure_connection()
            # If that fails too, the attempt will find out for itself.
            with suppress(psycopg.Error):
                end_if_idle(self._wrapper.connection, ghost)

    def _refuse_what_was_remembered(self, result: R) -> None:
        """Refuse what an attempt returned that was rolled back, if this one has sent nothing.

        Raises:
            TransactionManagementError: It comes from a memory of that attempt.
        """
        same = result is self._rolled_back and result is not None
        # psycopg sends BEGIN with the first statement.
        if same and is_outermost(self._wrapper) and is_idle(self._wrapper):
            raise TransactionManagementError(
                f"{self._report.name} had written to {self._wrapper.alias!r} before it was rolled "
                f"back and restarted, and then returned the same result without a statement: it "
                f"remembers what was not committed. Keep such a memory above retry_transaction, "
                f"or fill it in transaction.on_commit()."
            )

    def _settle(self, attempt: Attempt, result: R) -> None:
        """The body has returned: have its transaction committed, rolled back or refused."""
        wrapper = self._wrapper
        attempt.leave_blocks(wrapper)
        failed = wrapper.needs_rollback or attempt.interrupted or is_broken(wrapper)
        if failed and is_error_response(result):
            # A view that has answered for a failure itself keeps its answer, unless the failure
            # is worth another attempt.
            failure = attempt.unforgiven(wrapper)
            if failure is None or self._judge(failure) is Verdict.RAISE:
                wrapper.set_rollback(True)
                return
        attempt.refuse_silent_rollback(wrapper)
        if asks_for_rollback(result):
            wrapper.set_rollback(True)

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
        verdict = self._judge(failure)
        if verdict is Verdict.RAISE:
            return None
        if attempt.may_have_ended and not attempt.has_written:
            # There is no id to look it up by.
            raise ambiguous(self._wrapper) from error
        unclear = verdict is Verdict.RESOLVE or attempt.may_have_ended
        if unclear and attempt.phase is not Phase.FAILED:
            outcome = resolve(self._wrapper, attempt)
            if outcome is not Phase.FAILED:
                raise ambiguous(self._wrapper) from error
        return failure

    def _judge(self, failure: Failure) -> Verdict:
        return judge(failure, self._policy.retry_on, read_only=bool(self._policy.read_only))

    def _refusal(self, attempt: Attempt, number: int, wait: float) -> Refusal | None:
        """Return why there is no further attempt; None if there is, and the budget has paid."""
        pool = self._report.pool
        if number == self._policy.max_attempts:
            return Refusal("attempts", "that was the last of max_attempts")
        if monotonic() + wait >= self._deadline:
            return Refusal("deadline", "another would begin after the deadline")
        if obstacle := self._obstacle(attempt):
            return Refusal("other", obstacle)
        if pool is not None and not pool.retry_budget.take(self._function):
            return Refusal("budget", "its part of the retry budget of this process is spent")
        return None

    def _obstacle(self, attempt: Attempt) -> str | None:
        """Return what makes another attempt impossible, however many are left."""
        if attempt.was_ended:
            return "a statement of its own has ended its transaction"
        if attempt.written_elsewhere:
            others = ", ".join(map(repr, sorted(attempt.written_elsewhere)))
            return f"it may have written to {others}, which a restart would not undo"
        if state := self._holdings.lost:
            return f"session state of the caller ({state}) was lost with the connection"
        # A session may be put back by a query, which needs a connection that works.
        self._give_back()
        return self._inputs.obstacle_after_restoring()

    def _give_back(self) -> None:
        if not self._wrapper.in_atomic_block and not self._holdings.keep_connection:
            self._wrapper.give_back()

    def _succeeded(self) -> None:
        if self._report.pool is not None:
            self._report.pool.retry_budget.give(self._function)
        if not self._wrapper.in_atomic_block:
            self._check.succeeded(self._wrapper)
        if self._holdings.lost:
            self._holdings.refuse_to_go_on()

"""The attempts of one call: each a whole transaction, until one succeeds or none is left."""

from __future__ import annotations

import time
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import psycopg
from django.db import Error
from psycopg.pq import ConnStatus

from django_pooled.backend.commit import ambiguous
from django_pooled.pool.deadline import current
from django_pooled.replay import Inputs, copy_of
from django_pooled.signals import attempt_ended, attempt_started
from django_pooled.sql.sqlstates import SERIALIZATION, is_refusal

from .attempt import Attempt
from .attempt_events import AttemptEvents
from .budget import budget_of
from .caller_state import CallerState
from .classify import Classification, classify
from .commit import resolve
from .commit_checks import CHECKS, ByCaller
from .phase import Phase
from .prepared_transactions import roll_back_prepared
from .report import Refusal, Report
from .server_identity import learn_anew

if TYPE_CHECKING:
    from collections.abc import Callable

    from django_pooled.backend.wrapper import DatabaseWrapper
    from django_pooled.pool.connection import PooledConnection

    from .classify import Failure
    from .policy import Policy
    from .retried import Retried

__all__ = ["Loop", "Seams", "wait_between_attempts"]

R = TypeVar("R")


_NOT_TO_BE_REPEATED = (Phase.COMMIT_SENT, Phase.COMMITTED, Phase.UNKNOWN)


def _replace_if_lost(wrapper: DatabaseWrapper, connection: PooledConnection) -> None:
    """Replace a connection that was lost since the caller's last statement: it costs no attempt.

    Raises:
        django.db.Error: No other is to be had, or it would not be as the caller has left this one.
    """
    try:
        wrapper.replace(connection)
    except Error:
        # The next one may be lost too, while it is set up: then the first attempt gets another.
        new = wrapper.connection
        if new is None or new is connection or new.pgconn.status == ConnStatus.OK:
            raise
        wrapper.give_back()


class Seams:
    """What `django_pooled.testing` replaces while a test runs, for all threads."""

    attempt: Callable[..., Attempt] = Attempt
    left_out: list[float] | None = None
    """The waits that were left out, in seconds; None while none is."""


def wait_between_attempts(policy: Policy, seconds: float) -> None:
    """Wait as the policy says; no longer if the deadline is ended early."""
    present, left_out = current.get(), Seams.left_out
    if left_out is not None:
        left_out.append(seconds)
    elif present is not None and policy.sleep is time.sleep:
        present.sleep(seconds)
    else:
        policy.sleep(seconds)


class Loop(Generic[R]):
    """The attempts of one call.

    Args:
        retried: What to call in each attempt, and with what.
        wrapper: On which database, outside a transaction.
        called: What calls the function, if that is not called itself.
    """

    def __init__(
        self,
        retried: Retried[R],
        wrapper: DatabaseWrapper,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        called: Callable[..., R] | None = None,
    ) -> None:
        self._retried = retried
        self._policy = policy = retried.policy
        self._wrapper = wrapper
        self._call = partial(called or retried.function, *args, **kwargs)
        self._inputs = Inputs(retried.surroundings, args, kwargs)
        self._caller_state: CallerState | None = None
        if wrapper.connection is not None and not wrapper.in_atomic_block:
            _replace_if_lost(wrapper, wrapper.connection)
        if wrapper.connection is not None and not wrapper.in_atomic_block:
            self._caller_state = CallerState(wrapper)
        check = policy.commit_check
        if isinstance(check, str):
            self._check = CHECKS[check]()
        else:
            # The function may empty a list that it was given.
            self._check = ByCaller(partial(check, *copy_of(args), **copy_of(kwargs)))
        self._number = 1
        """Of the present attempt."""
        self._report: Report | None = None
        """Made at the first failure."""
        if self._inputs.are_to_come:
            # Clients still send their requests; they need no connection meanwhile.
            self._give_back()
            self._inputs.await_bodies()
        # The wait for the first connection counts, also if it has begun without a thread.
        self._started = monotonic() if wrapper.queued is None else wrapper.queued[1].since
        self._deadline = self._started + policy.deadline
        deadline = current.get()
        if deadline is not None:
            self._deadline = min(self._deadline, deadline.until)

    def run(self) -> R:
        """Try until an attempt succeeds, or until there is no sense in another."""
        policy, wrapper, check = self._policy, self._wrapper, self._check
        if check.record is not None:
            check.refuse_without_table(wrapper)
        attempt = Seams.attempt(policy, wrapper, check, self._deadline, self._retried.name)
        events = None
        if attempt_started.receivers or attempt_ended.receivers:
            events = AttemptEvents(self._retried.function, policy.using)
        try:
            while True:
                if events is not None:
                    events.started(self._number)
                try:
                    result = self._inputs.run(partial(attempt.run, self._call))
                    break
                except Exception as error:
                    following = self._following(attempt, error)
                    if following is None:
                        raise
                    if events is not None:
                        events.restarts(attempt, error)
                attempt = following
                if attempt.wait is not None:
                    if wrapper.connection is not None:
                        # Others may use it meanwhile, unless the caller needs it.
                        self._give_back()
                    wait_between_attempts(policy, attempt.wait)
        except BaseException as error:
            if events is not None:
                events.failed(attempt, error)
            if self._report is not None:
                self._report.ended("failed")
            raise
        if events is not None:
            events.committed(attempt)
        budget = attempt.pool.retry_budget if attempt.pool is not None else None
        if budget is not None and budget.is_owed:
            budget.give(self._retried.full_name)
        if check.record is not None and not wrapper.in_atomic_block:
            check.succeeded(wrapper)
        if self._caller_state is not None and self._caller_state.lost:
            self._caller_state.refuse_to_go_on()
        if self._report is not None:
            self._report.ended("committed")
        return result

    def _following(self, attempt: Attempt, error: Exception) -> Attempt | None:
        """Return the attempt that follows one which failed; None if there must be none.

        Raises:
            AmbiguousCommit: Whether an attempt took effect cannot be told.
        """
        policy, number = self._policy, self._number
        if self._report is None:
            self._report = Report(policy, self._retried.function, self._retried.name, self._started)
        report = self._report
        report.pool = attempt.pool or report.pool
        watch = attempt.watch
        if watch is not None and watch.was_ended:
            roll_back_prepared(self._wrapper, watch.identity)
        failure = attempt.failure_behind(error)
        following = Seams.attempt(
            policy, self._wrapper, self._check, self._deadline, self._retried.name
        )
        following.rolled_back = attempt.rolled_back
        if failure is not None and self._failed_by_a_question(attempt, failure):
            return following
        wait = policy.backoff.wait(number)
        is_worth_another = failure is not None and self._is_worth_another(attempt, failure, error)
        refusal = self._refusal(attempt, number, wait) if is_worth_another else None
        if refusal is not None and failure is not None:
            report.refused(error, failure, number, refusal)
        if failure is None or not is_worth_another or refusal is not None:
            if self._check.has_guessed:
                # It would read as if nothing had happened.
                raise ambiguous(self._wrapper) from error
            return None
        following.rolled_back = attempt.returned if attempt.has_written else None
        following.left_open = attempt.abandoned if failure.lost else None
        following.wait = wait
        report.restarts(error, failure, number, wait)
        self._number += 1
        return following

    def _failed_by_a_question(self, attempt: Attempt, failure: Failure) -> bool:
        """Tell whether an attempt failed by a question of ours, which is not asked any more.

        It was no fault of the caller's, and counts for nothing: the call begins anew.
        """
        if (
            failure.lost
            or failure.sqlstate in SERIALIZATION
            or attempt.questions is None
            or not (is_refusal(failure.error) or self._check.may_have_caused(failure.error))
            or attempt.phase in _NOT_TO_BE_REPEATED
            or monotonic() >= self._deadline
        ):
            return False
        try:
            self._wrapper.ensure_connection()
            connection = self._wrapper.connection
            refused = learn_anew(connection, attempt.questions)
            if not refused and self._check.may_have_caused(failure.error):
                refused = self._check.do_without(connection, failure.error)
        except (psycopg.Error, Error):
            return False
        return refused and self._obstacle(attempt) is None

    def _is_worth_another(self, attempt: Attempt, failure: Failure, error: Exception) -> bool:
        """Tell whether another attempt may succeed, and cannot do twice what this one did.

        Args:
            attempt: Which failed.
            failure: Why: an error of its own connection, since what another one did stays done.
            error: What it raised.

        Raises:
            AmbiguousCommit: Whether the attempt took effect cannot be told.
        """
        if attempt.phase in _NOT_TO_BE_REPEATED:
            return False
        if self._check.record is not None:
            if self._check.proves_earlier_commit(failure.error):
                raise ambiguous(self._wrapper) from error
            self._check.explain_missing_record(failure.error, self._wrapper)
        policy = self._policy
        meaning = classify(failure, policy.retry_on, read_only=policy.read_only)
        if meaning is Classification.RAISE:
            return False
        may_have_ended = attempt.watch is not None and attempt.watch.may_have_ended
        if may_have_ended and not attempt.has_written:
            # There is no id to look it up by.
            raise ambiguous(self._wrapper) from error
        unclear = meaning is Classification.RESOLVE or may_have_ended
        if unclear and attempt.phase is not Phase.FAILED and resolve(attempt) is not Phase.FAILED:
            raise ambiguous(self._wrapper) from error
        return True

    def _refusal(self, attempt: Attempt, number: int, wait: float) -> Refusal | None:
        """Return why there is no further attempt; None if there is, and the budget has paid."""
        pool = attempt.pool
        if number == self._policy.max_attempts:
            return Refusal("attempts", None)
        if monotonic() + wait >= self._deadline:
            return Refusal("deadline", "the deadline comes before another attempt")
        if obstacle := self._obstacle(attempt):
            return Refusal("other", obstacle)
        if pool is not None and not budget_of(pool).take(self._retried.full_name):
            return Refusal("budget", "its share of this process's retry budget is spent")
        return None

    def _obstacle(self, attempt: Attempt) -> str | None:
        """Return what makes another attempt impossible, however many are left."""
        if attempt.watch is not None and attempt.watch.was_ended:
            return "a statement of its own has ended its transaction"
        if attempt.written_elsewhere:
            others = ", ".join(map(repr, sorted(attempt.written_elsewhere)))
            return f"it may have written to {others}, which a restart would not undo"
        if self._caller_state is not None and (state := self._caller_state.lost):
            return f"session state of the caller ({state}) was lost with the connection"
        # A session may be put back by a query, which needs a connection that works.
        self._give_back()
        return self._inputs.obstacle_after_restoring()

    def _give_back(self) -> None:
        wrapper, caller = self._wrapper, self._caller_state
        if wrapper.connection is None or wrapper.in_atomic_block:
            return
        if caller is None or not caller.keep_connection:
            wrapper.give_back()

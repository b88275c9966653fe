"""Reports on the attempts of one call: log records, a signal, counters, a note on the error."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from django_pooled.diagnostics.log_fields import event_fields
from django_pooled.signals import transaction_restarting
from django_pooled.sql.sqlstates import LOST, named

if TYPE_CHECKING:
    from collections.abc import Callable

    from django_pooled.pool.pool import Pool

    from .classify import Failure
    from .policy import Policy

__all__ = ["Refusal", "Report"]

logger = logging.getLogger("django_pooled.retry")


class Refusal(NamedTuple):
    """Why a retryable failure is followed by no other attempt."""

    reason: str
    """For programs: 'attempts', 'deadline', 'budget' or 'other', as counters have it."""
    sentence: str | None
    """For people; None where the number of attempts tells it."""


@dataclass(eq=False)
class Report:
    """The reports on one call."""

    policy: Policy
    function: Callable[..., object]
    name: str
    """Of the function."""
    started: float
    """When it was called, in monotonic seconds."""

    pool: Pool | None = None
    """The pool whose counters are used, once there was a checkout."""

    _restarted_for: str | None = None
    """The failure of the attempt before this one."""

    def restarts(self, error: Exception, failure: Failure, number: int, wait: float) -> None:
        """Another attempt follows."""
        reason = failure.sqlstate or LOST
        logger.warning(
            "database %r: %s: %s; attempt %d of %d in %.3f s",
            self.policy.using, self.name, named(reason), number + 1, self.policy.max_attempts, wait,
            extra=event_fields(
                "transaction_restarts", alias=self.policy.using, function=self.name, attempt=number,
                wait=wait, error=error, sqlstate=failure.sqlstate,
            ),
        )  # fmt: skip
        before, self._restarted_for = self._restarted_for, reason
        if self.pool is not None:
            self.pool.record.add_restart(reason, self.name, before)
        transaction_restarting.send_robust(
            sender=self.function, using=self.policy.using, attempt=number,
            sqlstate=failure.sqlstate, wait=wait, error=error,
        )  # fmt: skip

    def ended(self, outcome: str) -> None:
        """Count how the last attempt ended, if it was a restart."""
        if self._restarted_for is not None and self.pool is not None:
            self.pool.record.add("restarted", (self._restarted_for, outcome))

    def refused(self, error: Exception, failure: Failure, number: int, refusal: Refusal) -> None:
        """No other attempt follows, for a reason that the error is given as a note."""
        if self.pool is not None:
            self.pool.record.add("refused_restarts", refusal.reason)
        elapsed = monotonic() - self.started
        attempts = "1 attempt" if number == 1 else f"{number} attempts"
        reason = named(failure.sqlstate or LOST)
        what = f"{self.name} failed after {attempts} in {elapsed:.2f} s: {reason}"
        if refusal.sentence is not None:
            what += f"; not restarted: {refusal.sentence}"
        logger.warning(
            "database %r: %s",
            self.policy.using,
            what,
            extra=event_fields(
                "transaction_failed",
                alias=self.policy.using,
                function=self.name,
                attempts=number,
                seconds=elapsed,
                reason=refusal.reason,
                error=error,
            ),
        )
        if sys.version_info >= (3, 11):  # pragma: no branch - Python 3.10 has no notes
            error.add_note(f"retry_transaction: {what}")

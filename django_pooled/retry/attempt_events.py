"""Signals before and after each attempt of a call."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django_pooled.errors import AmbiguousCommit
from django_pooled.signals import attempt_ended, attempt_started

if TYPE_CHECKING:
    from collections.abc import Callable

    from .attempt import Attempt

__all__ = ["AttemptEvents"]


class AttemptEvents:
    """Sends the signals of one call's attempts; each attempt ends once, whatever is raised.

    Args:
        function: The function that is called.
        alias: Of the database.
    """

    def __init__(self, function: Callable[..., object], alias: str) -> None:
        self._function = function
        self._alias = alias
        self._number: int | None = None
        """Of the attempt under way."""

    def started(self, number: int) -> None:
        """An attempt begins."""
        self._number = number
        attempt_started.send_robust(sender=self._function, using=self._alias, attempt=number)

    def committed(self, attempt: Attempt) -> None:
        """The function has returned, and its transaction has ended as it wanted."""
        self._ended(attempt, "rolled back" if attempt.rollback_wanted else "committed", None)

    def restarts(self, attempt: Attempt, error: Exception) -> None:
        """It failed, and another attempt follows."""
        self._ended(attempt, "restarted", error)

    def failed(self, attempt: Attempt, error: BaseException) -> None:
        """It failed, and none follows; without effect if it has ended already."""
        unknown = isinstance(error, AmbiguousCommit)
        self._ended(attempt, "unknown" if unknown else "failed", error)

    def _ended(self, attempt: Attempt, outcome: str, error: BaseException | None) -> None:
        number, self._number = self._number, None
        if number is None:
            return
        failure = attempt.failure_behind(error) if isinstance(error, Exception) else None
        pool = attempt.pool
        attempt_ended.send_robust(
            sender=self._function, using=self._alias, attempt=number,
            pool_name=None if pool is None else pool.options.name or pool.alias,
            outcome=outcome, sqlstate=None if failure is None else failure.sqlstate, error=error,
        )  # fmt: skip

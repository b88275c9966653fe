"""The arguments of ``retry_transaction``, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

from django_pooled.backoff import Backoff

from .commit_checks import MODES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from psycopg import IsolationLevel

    from .verdict import RetryOn

__all__ = ["BACKOFF", "Policy", "TransactionOptions"]

BACKOFF = Backoff(initial=0.025, maximum=1.0)
"""Measured best on a contended row: fewer attempts and a lower p99 than immediate repetition."""


class TransactionOptions(TypedDict, total=False):
    """Those arguments as a caller gives them; see `django_pooled.retry_transaction`."""

    using: str
    max_attempts: int
    deadline: float
    isolation_level: IsolationLevel | None
    read_only: bool | None
    retry_on: Iterable[str]
    commit_check: str | Callable[..., bool | None]
    backoff: Backoff
    sleep: Callable[[float], None]


@dataclass(frozen=True)
class Policy:
    """How a transaction is run and run again; see `django_pooled.retry_transaction`.

    Raises:
        ValueError: A value that cannot work.
    """

    using: str
    max_attempts: int
    deadline: float
    isolation_level: IsolationLevel | None
    read_only: bool | None
    retry_on: RetryOn
    commit_check: str | Callable[..., bool | None]
    backoff: Backoff
    sleep: Callable[[float], None]

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts is {self.max_attempts!r}; expected 1 or more")
        if self.deadline <= 0:
            raise ValueError(f"deadline is {self.deadline!r}; expected seconds above 0")
        if not callable(self.commit_check) and self.commit_check not in MODES:
            raise ValueError(
                f"commit_check is {self.commit_check!r}; expected one of {', '.join(MODES)}, or "
                f"a callable that tells True, False or None"
            )

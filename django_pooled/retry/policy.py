"""The arguments of ``retry_transaction``, checked."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypedDict

from psycopg import IsolationLevel

from django_pooled.pool.backoff import Backoff
from django_pooled.pool.beginning import LONGEST
from django_pooled.pool.seconds import is_time_limit

from .callables import is_async
from .commit_checks import CHECKS
from .commit_outcome import GRACE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from django_pooled.replay.idempotency import IdempotencyOptions, KeyOf, ScopeOf

    from .classify import RetryOn

__all__ = ["BACKOFF", "Policy", "TransactionOptions", "refuse_unknown_arguments"]

BACKOFF = Backoff(initial=0.025, maximum=1.0)
"""Measured best on a contended row: fewer attempts and a lower p99 than immediate repetition."""

LONGEST_EXPIRY = 36_525 * 86_400
"""Seconds that a key is kept at most; PostgreSQL's timestamps end at some point too."""

_BOOLS = ("read_only", "deferrable")


class TransactionOptions(TypedDict, total=False):
    """Those arguments as a caller gives them; see `django_pooled.retry_transaction`."""

    using: str
    max_attempts: int
    deadline: float
    isolation_level: IsolationLevel | None
    read_only: bool | None
    deferrable: bool | None
    statement_timeout: float | None
    lock_timeout: float | None
    retry_on: Iterable[str]
    commit_check: str | Callable[..., bool | None]
    backoff: Backoff
    sleep: Callable[[float], None]
    idempotency_key: str | KeyOf | None
    idempotency_required: bool
    idempotency_scope: ScopeOf | None
    idempotency_expiry: float


_OTHER_NAMES = {
    "alias": "using",
    "attempts": "max_attempts",
    "database": "using",
    "db": "using",
    "delay": "backoff",
    "isolation": "isolation_level",
    "max_tries": "max_attempts",
    "on": "retry_on",
    "readonly": "read_only",
    "stop": "max_attempts",
    "timeout": "deadline",
    "tries": "max_attempts",
    "wait": "backoff",
}
"""What other packages call an argument, and its name here."""


def refuse_unknown_arguments(given: Mapping[str, object]) -> None:
    """Refuse arguments that `retry_transaction` does not have.

    Raises:
        TypeError: There is one; the message says what to write.
    """
    for name, value in given.items():
        known = TransactionOptions.__annotations__
        near = difflib.get_close_matches(name, known, n=1)
        instead = _OTHER_NAMES.get(name) or (near[0] if near else None)
        if name in ("max_retries", "retries"):
            # The first attempt is none.
            attempts = value + 1 if isinstance(value, int) else "one more"
            meant = f"write max_attempts={attempts}, which counts the first attempt too"
        elif instead is not None:
            meant = f"did you mean {instead!r}?"
        else:
            meant = f"expected one of {', '.join(known)}"
        raise TypeError(f"retry_transaction has no argument {name!r}: {meant}")


def _levels(given: object) -> str:
    """Say which isolation level to write; the one that was meant, if it can be told."""
    name = given.strip().upper().replace(" ", "_") if isinstance(given, str) else None
    if name in IsolationLevel.__members__:
        return f"psycopg.IsolationLevel.{name}"
    # Not from a number, which means another level than it did for psycopg2.
    levels = ", ".join(f"psycopg.IsolationLevel.{level.name}" for level in IsolationLevel)
    return f"one of {levels}, or None for the connection's own"


def _number_in(given: object) -> str | None:
    """Return the number that a string has, to be written without quotes."""
    return given if isinstance(given, str) and given.isdecimal() else None


@dataclass(frozen=True)
class Policy:
    """How a transaction is run and run again; see `django_pooled.retry_transaction`.

    Raises:
        TypeError: A value of a wrong type.
        ValueError: A value that cannot work.
    """

    using: str
    max_attempts: int
    deadline: float
    isolation_level: IsolationLevel | None
    read_only: bool | None
    deferrable: bool | None
    statement_timeout: float | None
    lock_timeout: float | None
    retry_on: RetryOn
    commit_check: str | Callable[..., bool | None]
    backoff: Backoff
    sleep: Callable[[float], None]
    idempotency: IdempotencyOptions | None = None

    def __post_init__(self) -> None:
        self._expect("using", str, "a key of DATABASES")
        self._expect(
            "max_attempts", int, _number_in(self.max_attempts) or "a whole number, 1 or more"
        )
        self._expect("deadline", int | float, _number_in(self.deadline) or "seconds above 0")
        self._expect("isolation_level", IsolationLevel | None, _levels(self.isolation_level))
        self._expect("read_only", bool | None, "True, False or None")
        self._expect("deferrable", bool | None, "True, False or None")
        for name in ("statement_timeout", "lock_timeout"):
            self._expect(name, int | float | None, "seconds above 0 or None")
            seconds = getattr(self, name)
            if seconds is not None and not 0 < seconds <= LONGEST:
                raise ValueError(
                    f"{name} is {seconds!r}; expected seconds above 0, at most {LONGEST}"
                )
        if self.deferrable and (
            self.isolation_level not in (None, IsolationLevel.SERIALIZABLE)
            or self.read_only is False
        ):
            raise ValueError(
                "deferrable is True, which has an effect on a transaction that is SERIALIZABLE "
                "and READ ONLY alone; expected isolation_level and read_only to say so"
            )
        self._expect("backoff", Backoff, "a django_pooled.Backoff")
        if not callable(self.sleep):
            raise TypeError(f"sleep is {self.sleep!r}; expected a callable that takes seconds")
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts is {self.max_attempts!r}; expected 1 or more")
        if not is_time_limit(self.deadline):
            raise ValueError(f"deadline is {self.deadline!r}; expected seconds above 0")
        if not callable(self.commit_check) and self.commit_check not in CHECKS:
            raise ValueError(
                f"commit_check is {self.commit_check!r}; expected one of {', '.join(CHECKS)}, or "
                f"a callable that tells True, False or None"
            )

        self._refuse_coroutine_functions(commit_check=self.commit_check, sleep=self.sleep)
        if self.idempotency is not None:
            self._check_idempotency(self.idempotency)

    @staticmethod
    def _refuse_coroutine_functions(**given: object) -> None:
        for name, value in given.items():
            if is_async(value):
                raise TypeError(
                    f"{name} is {value!r}, a coroutine function, which nothing would await; "
                    f"expected a synchronous one: it is called in the thread of the transaction"
                )

    def _check_idempotency(self, options: IdempotencyOptions) -> None:
        if self.read_only:
            raise ValueError("read_only is True; idempotency_key has to store the response")
        self._refuse_coroutine_functions(
            idempotency_key=options.key, idempotency_scope=options.scope
        )
        least = self.deadline + GRACE
        if not options.expiry > least:
            raise ValueError(
                f"idempotency_expiry is {options.expiry!r}; expected seconds above {least:g}, for "
                f"which this call itself may look for its key"
            )
        if options.expiry > LONGEST_EXPIRY:
            raise ValueError(
                f"idempotency_expiry is {options.expiry!r}; expected at most {LONGEST_EXPIRY} "
                f"seconds, a hundred years"
            )

    @cached_property
    def time_limits(self) -> dict[str, float]:
        """Seconds of the transaction's own limits, by the names of their settings."""
        limits = {"statement_timeout": self.statement_timeout, "lock_timeout": self.lock_timeout}
        return {name: seconds for name, seconds in limits.items() if seconds is not None}

    @cached_property
    def sets_characteristics(self) -> bool:
        """Whether the transaction has any that the connection does not have."""
        modes = (self.isolation_level, self.read_only, self.deferrable)
        return bool(self.time_limits) or any(mode is not None for mode in modes)

    def _expect(self, name: str, kind: Any, words: str) -> None:
        value = getattr(self, name)
        # Python takes a bool for an int.
        if not isinstance(value, kind) or (isinstance(value, bool) and name not in _BOOLS):
            raise TypeError(f"{name} is {value!r}; expected {words}")

"""Which failures are retryable: the transaction is restarted, looked up first, or not repeated."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from django_pooled.errors import DeadlineExceeded
from django_pooled.sql.sqlstates import (
    CONNECTION_LOST,
    READ_ONLY,
    SERIALIZATION,
    UNKNOWN_OUTCOME,
    is_pooler_timeout,
)

if TYPE_CHECKING:
    import psycopg

__all__ = ["Classification", "Failure", "RetryOn", "classify"]


class Classification(Enum):
    """What to do about a failure."""

    RESTART = "restart"
    RESOLVE = "resolve"
    """Find out whether the transaction was committed, and restart it if not."""
    RAISE = "raise"


# A FATAL error that is about more than the connection: the transaction's time limits (25P03,
# 25P04) or the server's resources. The next attempt would end in the same way.
_FATAL_FOR_GOOD = re.compile("25P0[34]|28|3D|42|53")

# On a live connection these are about another one, that of dblink or a foreign server: refused or
# misunderstood. Another attempt will not help.
_OTHERS_FOR_GOOD = frozenset({"08004", "08P01"})

# PgBouncer ends connections with 08P01 for any reason, in words that it never translates. These
# words mean that the transaction itself was at fault, as with 57014, 25P03 and 25P04. If all of the
# server's connections were taken (`is_pooler_timeout`), another attempt would wait too, as with
# CheckoutTimeout.
_POOLERS_LIMITS = re.compile("(query|idle transaction|transaction)[ _]timeout")


@dataclass(frozen=True)
class Failure:
    """A database error, and what was left of its connection."""

    error: psycopg.Error
    lost: bool
    """Whether the connection is dead, by its state and not by the error's text."""
    sqlstate: str | None
    """The error's, or the one with which the server had ended the session."""


@dataclass(frozen=True)
class RetryOn:
    """Failures that a caller declared retryable.

    Each is an SQLSTATE, or an SQLSTATE and the name of a constraint: ``"23505:app_slot_unique"``.
    """

    sqlstates: frozenset[str]
    constraints: frozenset[tuple[str, str]]

    @classmethod
    def parse(cls, given: Iterable[str]) -> RetryOn:
        """Read the argument ``retry_on``.

        Raises:
            TypeError: It is no collection.
            ValueError: Something else than an SQLSTATE, with or without a constraint's name.
        """
        if not isinstance(given, Iterable):
            raise TypeError(f"retry_on is {given!r}; expected SQLSTATEs, such as ['55P03']")
        sqlstates, constraints = set(), set()
        for item in [given] if isinstance(given, str) else given:
            found = re.fullmatch("([0-9A-Z]{5})(?::(.+))?", item) if isinstance(item, str) else None
            if found is None:
                raise ValueError(
                    f"retry_on has {item!r}; expected SQLSTATEs, five digits or capitals each, "
                    f"or '23505:name_of_the_constraint'"
                )
            sqlstate, constraint = found.groups()
            if constraint is None:
                sqlstates.add(sqlstate)
            else:
                constraints.add((sqlstate, constraint))
        return cls(frozenset(sqlstates), frozenset(constraints))

    def includes(self, failure: Failure) -> bool:
        """Whether *failure* is one of them."""
        sqlstate = failure.sqlstate or ""
        name = failure.error.diag.constraint_name or ""
        return sqlstate in self.sqlstates or (sqlstate, name) in self.constraints


def classify(failure: Failure, retry_on: RetryOn, *, read_only: bool | None) -> Classification:
    """Classify the failure of an attempt, before its COMMIT or in COMMIT itself.

    The connection's state counts first: psycopg gives no SQLSTATE for a broken socket, and an
    SQLSTATE of class 08 on a live connection is about another connection, such as dblink's.

    Args:
        failure: The first one that no savepoint has undone.
        retry_on: What the caller declared retryable.
        read_only: Whether the transaction was meant to write nothing.

    Returns:
        What to do: the table in docs/retry.md, which tests/faults/test_retry_table.py executes.
    """
    sqlstate = failure.sqlstate
    if isinstance(failure.error, DeadlineExceeded):
        # Also if its connection had to be closed.
        return Classification.RAISE
    if sqlstate in UNKNOWN_OUTCOME:
        return Classification.RESOLVE
    if sqlstate in SERIALIZATION or retry_on.includes(failure):
        return Classification.RESTART
    if sqlstate == READ_ONLY:
        return Classification.RAISE if read_only else Classification.RESTART
    if failure.lost:
        return _of_a_lost_connection(failure)
    if sqlstate is None or sqlstate in _OTHERS_FOR_GOOD:
        return Classification.RAISE
    about_a_connection = sqlstate in CONNECTION_LOST or sqlstate.startswith("08")
    return Classification.RESTART if about_a_connection else Classification.RAISE


def _of_a_lost_connection(failure: Failure) -> Classification:
    sqlstate = failure.sqlstate
    if sqlstate is None:
        # It broke, and neither the server nor psycopg said why.
        return Classification.RESTART
    if _FATAL_FOR_GOOD.match(sqlstate):
        return Classification.RAISE
    message = failure.error.diag.message_primary or str(failure.error)
    if is_pooler_timeout(failure.error):
        return Classification.RAISE
    if sqlstate == "08P01" and _POOLERS_LIMITS.fullmatch(message):
        return Classification.RAISE
    ended_by_it = failure.error.diag.severity_nonlocalized in ("FATAL", "PANIC", None)
    return Classification.RESTART if ended_by_it else Classification.RAISE

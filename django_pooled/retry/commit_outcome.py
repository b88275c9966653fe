"""Asks, on other connections and until a deadline, what became of a COMMIT without an answer."""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING

import psycopg
from django.db import Error, connections

from django_pooled.backend.commit import is_idle
from django_pooled.diagnostics.log_fields import event_fields
from django_pooled.diagnostics.redaction import told
from django_pooled.errors import PoolClosed, PoolError
from django_pooled.integrations import tenants
from django_pooled.pool.backoff import Backoff
from django_pooled.pool.deadline import grace
from django_pooled.sql.sqlstates import is_connection_lost

from .phase import Phase
from .server_identity import learn
from .server_questions import has_foreign_tables
from .transaction_status import CommitStatus, end_if_idle

if TYPE_CHECKING:
    from collections.abc import Callable

    from django_pooled.backend.wrapper import DatabaseWrapper

    from .commit_checks import CommitCheck
    from .transaction_status import TransactionIdentity

__all__ = ["inquire"]

logger = logging.getLogger("django_pooled.retry")

_ASK_AGAIN = Backoff(initial=0.05, maximum=0.5)

GRACE = 5.0
"""Seconds that are spent on asking, even after the deadline of the call.

If the network drops COMMIT, that is noticed after tcp_user_timeout, which may be past the deadline.
Then the first question ends the abandoned backend, and the next finds a transaction rolled back.
"""


def inquire(
    wrapper: DatabaseWrapper,
    commit_check: CommitCheck,
    lost: TransactionIdentity | None,
    *,
    was_sent: bool,
    deadline: float,
    sleep: Callable[[float], None],
) -> Phase:
    """Find out whether a transaction was committed, and leave nothing of it open.

    Args:
        wrapper: Whose transaction it was.
        commit_check: What decides.
        lost: The transaction; None if its server does not identify it.
        was_sent: Whether its COMMIT was sent.
        deadline: Until when to ask, unless that leaves less than `GRACE`.
        sleep: Waits, in seconds.

    Returns:
        COMMITTED, FAILED or UNKNOWN. The wrapper has a connection that works, or none.
    """
    deadline = max(deadline, monotonic() + GRACE)
    # First give back the broken one: threads that hold one connection while they wait for another
    # would wait for each other.
    wrapper.drop_connection()
    # The wrapper itself is leaving its atomic block, and its callbacks wait for the outcome. The
    # questions, and those of the caller's own commit_check, are asked by another in autocommit.
    asking = wrapper.copy()
    connections[wrapper.alias] = asking
    try:
        tenants.follow(wrapper, asking)
        times = 0
        # The request's deadline leaves as much time.
        with grace(GRACE):
            while (outcome := _ask_once(asking, commit_check, lost, was_sent, deadline)) is None:
                times += 1
                sleep(_ASK_AGAIN.wait(times))
        # The connection may be lost after its answer; then the next use connects.
        if outcome is Phase.COMMITTED and is_idle(asking):
            wrapper.adopt_connection(asking)
    finally:
        connections[wrapper.alias] = wrapper
        asking.close()
    return outcome


def _ask_once(
    asking: DatabaseWrapper,
    commit_check: CommitCheck,
    lost: TransactionIdentity | None,
    was_sent: bool,
    deadline: float,
) -> Phase | None:
    """Ask what became of the transaction; None if that has to be asked again."""
    trouble: object
    try:
        asking.ensure_connection()
        learn(asking.connection)
        status = commit_check.find(asking.connection, lost)
        if status not in (CommitStatus.IN_PROGRESS, CommitStatus.NOT_YET):
            outcome = commit_check.conclude(status, asking)
            # Rows of a foreign server are committed before the local transaction.
            is_partial = (
                outcome is Phase.FAILED
                and was_sent
                and not commit_check.asks_the_caller
                and has_foreign_tables(asking.connection)
            )
            commit_check.may_be_partial = is_partial
            return Phase.UNKNOWN if is_partial else outcome
        if status is CommitStatus.IN_PROGRESS and lost is not None:
            end_if_idle(asking.connection, lost)
        trouble = f"the transaction is {status.value}"
    except (psycopg.Error, Error) as error:
        # This connection may be lost for the same reason as the first one.
        passing = is_connection_lost(error) or isinstance(error, PoolError)
        if isinstance(error, PoolClosed) or not passing:
            return _unresolved(asking, error)
        trouble = error
    asking.close()
    return _unresolved(asking, trouble) if monotonic() >= deadline else None


def _unresolved(asking: DatabaseWrapper, why: object) -> Phase:
    logger.warning(
        "database %r: cannot find out whether a COMMIT took effect: %s",
        asking.alias,
        told(why) if isinstance(why, Exception) else why,
        extra=event_fields(
            "commit_unresolved",
            alias=asking.alias,
            error=why if isinstance(why, Exception) else None,
        ),
    )
    return Phase.UNKNOWN

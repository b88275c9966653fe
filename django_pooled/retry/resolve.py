"""Asks, on other connections and until the deadline, what became of a COMMIT without an answer."""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING

import psycopg
from django.db import Error, connections

from django_pooled.diagnostics.log_fields import facts
from django_pooled.diagnostics.redaction import told
from django_pooled.errors import PoolClosed, PoolError
from django_pooled.integrations import tenants
from django_pooled.pool.backoff import Backoff
from django_pooled.sql.sqlstates import is_connection_lost

from .attempt import is_idle
from .phase import Phase
from .server_identity import learn
from .transaction_status import Finding, end_if_idle, has_foreign_tables

if TYPE_CHECKING:
    from django_pooled.backend.wrapper import DatabaseWrapper

    from .attempt import Attempt
    from .transaction_status import Testimony

__all__ = ["inquire"]

logger = logging.getLogger("django_pooled.retry")

_ASK_AGAIN = Backoff(initial=0.05, maximum=0.5)

GRACE = 5.0
"""Seconds that an inquiry has at least.

A network that swallows COMMIT shows after tcp_user_timeout, when a call's deadline may have passed.
Then a look ends the abandoned backend, and another one finds the transaction rolled back.
"""


def inquire(
    wrapper: DatabaseWrapper, attempt: Attempt, lost: Testimony | None, *, was_sent: bool
) -> Phase:
    """Find out whether a transaction was committed, and leave nothing of it open.

    Args:
        wrapper: Whose transaction it was.
        attempt: Whose deadline counts, unless it leaves less than `GRACE`.
        lost: What is known of the transaction; None where its server tells nothing.
        was_sent: Whether its COMMIT was sent.

    Returns:
        COMMITTED, FAILED or UNKNOWN. The wrapper has a connection that works, or none.
    """
    # First give back the broken one: threads that each held one while they wait for a
    # second would wait for each other.
    wrapper.drop_connection()
    # The wrapper itself is in the middle of leaving its atomic block, with callbacks that wait for
    # it. Whoever asks, a caller's own commit_check too, does so on one that is in autocommit.
    asking = wrapper.copy()
    connections[wrapper.alias] = asking
    try:
        tenants.follow(wrapper, asking)
        outcome = _ask_until_known(asking, attempt, lost, was_sent=was_sent)
        # An answer may be the last that came of a connection. Without one, the next use connects.
        if outcome is Phase.COMMITTED and is_idle(asking):
            wrapper.adopt_connection(asking)
    finally:
        connections[wrapper.alias] = wrapper
        asking.close()
    return outcome


def _ask_until_known(
    asking: DatabaseWrapper, attempt: Attempt, lost: Testimony | None, *, was_sent: bool
) -> Phase:
    deadline = max(attempt.deadline, monotonic() + GRACE)
    times = 0
    while True:
        trouble: object
        try:
            asking.ensure_connection()
            learn(asking.connection)
            finding = attempt.commit_check.find(asking.connection, lost)
            if finding is Finding.IN_PROGRESS:
                if lost is not None:
                    end_if_idle(asking.connection, lost)
            elif finding is not Finding.NOT_YET:
                outcome = attempt.commit_check.conclude(finding, asking)
                is_partial = (
                    outcome is Phase.FAILED
                    and was_sent
                    and (
                        # Rows of a foreign server are committed before the local transaction.
                        not attempt.commit_check.asks_the_caller
                        and has_foreign_tables(asking.connection)
                    )
                )
                return Phase.UNKNOWN if is_partial else outcome
            trouble = f"the transaction is {finding.value}"
        except (psycopg.Error, Error) as error:
            # What took the first connection may well take this one.
            passing = is_connection_lost(error) or isinstance(error, PoolError)
            if isinstance(error, PoolClosed) or not passing:
                return _unresolved(asking, error)
            trouble = error
        asking.close()
        if monotonic() >= deadline:
            return _unresolved(asking, trouble)
        times += 1
        attempt.sleep(_ASK_AGAIN.wait(times))


def _unresolved(asking: DatabaseWrapper, why: object) -> Phase:
    logger.warning(
        "database %r: a COMMIT stays unresolved: %s",
        asking.alias,
        told(why) if isinstance(why, Exception) else why,
        extra=facts(
            "commit_unresolved",
            alias=asking.alias,
            error=why if isinstance(why, Exception) else None,
        ),
    )
    return Phase.UNKNOWN

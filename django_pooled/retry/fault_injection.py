"""Faults that a test has ordered; the seam that `django_pooled.testing` works through."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import psycopg

if TYPE_CHECKING:
    from django_pooled.backend.wrapper import DatabaseWrapper

__all__ = ["Fault", "Moment", "ordered", "strike"]

Moment = Literal["begin", "body", "commit", "answer"]


@dataclass
class Fault:
    """One fault: when it strikes, and how often it still does."""

    using: str
    moment: Moment
    sqlstate: str | None
    times: int
    struck: int = 0

    def strike(self, connection: psycopg.Connection[object]) -> None:
        """Make it happen, for real: by the server's own error or the loss of the session.

        Raises:
            psycopg.Error: As the driver would have raised it.
        """
        self.times -= 1
        self.struck += 1
        if self.sqlstate is not None:
            connection.execute(
                f"DO $$ BEGIN RAISE EXCEPTION 'ordered by a test' "
                f"USING ERRCODE = '{self.sqlstate}'; END $$"
            )
        connection.close()
        raise psycopg.OperationalError("the connection is lost, as ordered by a test")


ordered: list[Fault] = []
"""What is still to come; empty outside tests."""


def strike(wrapper: DatabaseWrapper, moment: Moment) -> None:
    """Let a fault strike that was ordered for this moment of a transaction, if there is one."""
    for fault in ordered:
        if fault.times and (fault.using, fault.moment) == (wrapper.alias, moment):
            with wrapper.wrap_database_errors, wrapper.connection.unobserved():
                fault.strike(wrapper.connection)

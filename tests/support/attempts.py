"""Attempts that fail in the database, for tests of what the next one sees."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.db import connections

from django_pooled import Backoff, retry_transaction

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["QUICK", "Attempts", "attempts", "fail_with", "retried"]

QUICK = Backoff(initial=0.001, maximum=0.002)
retried = retry_transaction(backoff=QUICK, max_attempts=5)
"""The decorator, without long waits."""


def fail_with(sqlstate: str, using: str = "default") -> None:
    """Have the server raise an error with this SQLSTATE."""
    with connections[using].cursor() as cursor:
        cursor.execute(f"DO $$ BEGIN RAISE EXCEPTION 'made' USING ERRCODE = '{sqlstate}'; END $$")


class Attempts:
    """The attempts of one call, counted where no attempt's inputs are, and what they saw."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all."""
        self.seen: list[object] = []
        self.fail: Callable[[], None] = lambda: fail_with("40001")
        self.times = 1
        self.number = 0

    def see(self, what: object) -> None:
        """Take down what an attempt sees; two must see the same."""
        self.seen.append(what)

    def done(self) -> int:
        """Let the first attempt fail, in its end; return the number of another."""
        self.number += 1
        if self.number <= self.times:
            self.fail()
        return self.number

    @property
    def same(self) -> bool:
        """Whether there were several attempts, which all saw the same."""
        return self.number > 1 and all(what == self.seen[0] for what in self.seen)


attempts = Attempts()
"""Those of the present test; see the fixture of the same name."""

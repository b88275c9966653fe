"""The database errors of one attempt, and which of them a savepoint has undone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from django_pooled.sql.sqlstates import history

if TYPE_CHECKING:
    import psycopg

    from .classify import Failure

__all__ = ["Failures"]


@dataclass
class Failures:
    """Every database error on the connection of an attempt, swallowed ones included."""

    seen: list[Failure] = field(default_factory=list)
    """In the order in which they occurred."""
    undone: int = 0
    """How many of them, from the first, a savepoint has undone."""

    def contain(self, error: psycopg.Error) -> bool:
        """Tell whether *error* is one of them already."""
        return any(failure.error is error for failure in self.seen)

    @property
    def first(self) -> Failure | None:
        """The first one that is not undone; those after it are its consequences (25P02)."""
        return self.seen[self.undone] if self.undone < len(self.seen) else None

    def undo(self) -> None:
        """A savepoint was rolled back to: none of them counts any more."""
        self.undone = len(self.seen)

    def cause_of(self, raised: BaseException) -> Failure | None:
        """Return the failure for which an attempt ended, by raising *raised*; None if none did.

        The first that is not undone. If all are, the last one that *raised* comes from.
        """
        if self.first is not None:
            return self.first
        errors = set(map(id, history(raised)))
        for failure in reversed(self.seen):
            if id(failure.error) in errors:
                return failure
        return None

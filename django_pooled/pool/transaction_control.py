"""SAVEPOINT and RELEASE wait for the next statement, and are not sent if none follows.

Only what Django sends for its ``atomic`` blocks waits. What a user writes goes when it is written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from psycopg.pq import TransactionStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Control", "Kind", "TransactionControl"]

_IDLE, _INTRANS = TransactionStatus.IDLE, TransactionStatus.INTRANS

Kind = Literal["SAVEPOINT", "RELEASE", "ROLLBACK"]
"""What the server answers: ROLLBACK stands for ROLLBACK TO SAVEPOINT."""


class Control(NamedTuple):
    """A statement of Django's that works on a savepoint."""

    kind: Kind
    savepoint: str
    statement: str


class TransactionControl:
    """What waits on one connection, and which savepoints there are."""

    __slots__ = ("_begun", "_known", "_own", "_waiting", "expected")

    def __init__(self) -> None:
        self.expected: Control | None = None
        """What Django is about to execute, through a cursor and all that is wrapped around that."""
        self._own: object = None
        # Whether a savepoint is, or was, the first of the transaction, for which BEGIN is due.
        self._begun = False
        self._waiting: list[Control] = []
        # Savepoints of the transaction, the innermost last: those that were set here, as long as
        # nothing else can have ended them. RELEASE cannot fail for one of them.
        self._known: list[str] = []

    def waits(self, query: object, status: int) -> Kind | None:
        """Take note of a statement; tell whether it waits, by what the server would answer to it.

        Args:
            query: As a cursor got it.
            status: Of the connection, on which a transaction is open or about to begin.
        """
        control = self.expected
        if control is None:
            return None
        if query != control.statement:
            if not isinstance(query, str) or not _adds_a_comment(query, control.statement):
                return None
            control = control._replace(statement=query)
        self.expected, self._own = None, query
        if status == _IDLE and not self._begun:
            self._known.clear()
        can_wait = status in (_IDLE, _INTRANS)
        known = control.savepoint in self._known
        if control.kind == "SAVEPOINT":
            if can_wait:
                self._begun = status == _IDLE
                self._waiting.append(control)
                self._known.append(control.savepoint)
            else:
                self._known.clear()
            return "SAVEPOINT" if can_wait else None
        if not known:
            # The server has to say whether there is such a savepoint.
            self._known.clear()
            return None
        # Statements would have been sent after it, and what waits with them.
        unsent = self._place_of(control.savepoint) if can_wait else None
        self._forget_from(control.savepoint)
        if control.kind == "ROLLBACK":
            self._known.append(control.savepoint)
            # Whatever came after it is undone.
            del self._waiting[0 if unsent is None else unsent + 1 :]
            return None if unsent is None else "ROLLBACK"
        if not can_wait:
            return None
        if unsent is not None:
            del self._waiting[unsent:]
        else:
            self._waiting.append(control)
        return "RELEASE"

    @property
    def is_waiting(self) -> bool:
        """Whether there are statements that wait, or BEGIN does for one that need not be sent."""
        return self._begun or bool(self._waiting)

    @property
    def waiting(self) -> Sequence[bytes]:
        """The statements that wait, in their order."""
        return [control.statement.encode() for control in self._waiting]

    def sent(self) -> None:
        """What waits is being sent."""
        self._begun = False
        self._waiting.clear()

    def ended(self) -> None:
        """The transaction ends, and its savepoints with it."""
        self.sent()
        self._known.clear()

    def forget(self, query: object) -> None:
        """A statement may have ended savepoints, or the transaction."""
        if query is not self._own:
            self._known.clear()

    def _place_of(self, savepoint: str) -> int | None:
        for place in range(len(self._waiting) - 1, -1, -1):
            control = self._waiting[place]
            if control.kind == "SAVEPOINT" and control.savepoint == savepoint:
                return place
        return None

    def _forget_from(self, savepoint: str) -> None:
        while self._known.pop() != savepoint:
            pass


def _adds_a_comment(query: str, statement: str) -> bool:
    """Tell whether *query* is *statement*, with nothing but a comment after it."""
    if not query.startswith(statement):
        return False
    rest = query[len(statement) :].strip()
    return not rest or (rest.startswith("/*") and rest.find("*/") == len(rest) - 2)

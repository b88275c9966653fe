"""A question that rides with a statement: the transaction's id comes with its first write."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Protocol

import psycopg
from django.db.backends.postgresql import base as postgresql
from django.db.transaction import TransactionManagementError
from psycopg.pq import PipelineStatus, TransactionStatus

from django_pooled import psycopg_seam as seam
from django_pooled.connection import PooledConnection

from .server_identity import known
from .witness import Testimony, testify

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult
    from typing_extensions import Self

__all__ = ["Rider", "RidingCursor", "may_write"]

# A statement that may give the transaction an id. What is missed here costs a round trip before
# COMMIT, and what is caught needlessly a few microseconds. It is asked of each statement until
# the id is known, so long ones are searched only where plain words say that it is worth it.
_FIRST_WORD = re.compile(r"(?is)\s*(?:/\*.*?\*/\s*)*([a-z]+)\b")
_WRITES = frozenset(
    {
        *("INSERT", "UPDATE", "DELETE", "MERGE", "TRUNCATE", "CALL", "DO"),
        *("CREATE", "ALTER", "DROP", "NOTIFY"),
    }
)
_WRITES_WITHIN = re.compile(r"(?i)\b(?:INSERT|UPDATE|DELETE|MERGE)\b")
_LOCKS = re.compile(r"(?i)\bFOR\s+(?:NO\s+KEY\s+|KEY\s+)?(?:UPDATE|SHARE)\b")
_CALLS_NOTIFY = re.compile(r"(?i)\bpg_notify\b")

_ROLLS_BACK = re.compile(r"(?i)\s*ROLLBACK\b")

# NOTIFY gets its id only while COMMIT is under way, when nobody can ask any more: so it is
# given one at once, lest "no id" be taken for "nothing to lose".
_IS_NOTIFY = re.compile(r"(?i)\s*NOTIFY\b")


def may_write(query: object) -> bool:
    """Tell whether a statement looks as if it wrote something."""
    text = str(query)
    first = _FIRST_WORD.match(text)
    if first is None:
        return False
    word = first[1].upper()
    if word == "WITH":
        return _WRITES_WITHIN.search(text, first.end()) is not None
    if word != "SELECT":
        return word in _WRITES
    lowered = text.lower()
    if "for" in lowered and ("update" in lowered or "share" in lowered) and _LOCKS.search(text):
        return True
    return "pg_notify" in lowered and _CALLS_NOTIFY.search(text) is not None


def _notifies(query: str) -> bool:
    if "notify" not in query.lower():
        return False
    return bool(_IS_NOTIFY.match(query) or _CALLS_NOTIFY.search(query))


if TYPE_CHECKING:
    Cursor = psycopg.ClientCursor[Any]  # django-stubs knows nothing of its methods
else:
    Cursor = postgresql.Cursor


class Record(Protocol):
    """Something that a transaction leaves behind if, and only if, it is committed."""

    insertion: str
    """A statement that inserts it, or has no effect while the transaction has no id."""

    insertion_if_missing: str
    """One that inserts it unless the transaction has done so already."""

    proof: str | None
    """A condition that holds where the transaction has it; None where it takes a look."""


class Rider:
    """What has to be known of a transaction before its COMMIT, asked without a round trip.

    Args:
        connection: That of the transaction.
        record: What is to be inserted along with the first write, if anything.
    """

    def __init__(self, connection: PooledConnection, record: Record | None = None) -> None:
        self.testimony: Testimony | None = None
        """Set once the transaction has an id."""
        self.has_to_ask: bool = False
        """Whether COMMIT must not be sent before `ask`."""
        self._connection = connection
        self._record = record
        self._began = False
        connection.rider = self

    @property
    def statements(self) -> int:
        """Of how many statements an addition consists."""
        return 1 if self._record is None else 2

    def dismount(self) -> None:
        """The transaction is over, and with it the ride."""
        if self._connection.rider is self:
            self._connection.rider = None

    def savepoint_was_rolled_back(self) -> None:
        """Take note that the record may be gone with it; the id stays."""
        self.has_to_ask = self.has_to_ask or self._record is not None

    def refuse_if_ended(self) -> None:
        """Notice a COMMIT or ROLLBACK that the body sent itself.

        Raises:
            TransactionManagementError: There was one; what it has done cannot be undone.
        """
        if self._began and self._connection.pgconn.transaction_status == TransactionStatus.IDLE:
            raise TransactionManagementError(
                "A statement inside a transaction of retry_transaction has ended it. Leave COMMIT "
                "and ROLLBACK to the decorator."
            )
        self._began = True

    def addition_to(self, query: object) -> str | None:
        """Return what to send along with *query*, if anything.

        Raises:
            TransactionManagementError: As `refuse_if_ended`.
        """
        self.refuse_if_ended()
        if not isinstance(query, str):
            return None
        if self._record is not None and _ROLLS_BACK.match(query):
            self.savepoint_was_rolled_back()
        if self.testimony is not None or not may_write(query):
            return None
        if self._connection.pgconn.pipeline_status != PipelineStatus.OFF:
            # Takes one statement at a time.
            return None
        questions = known(self._connection)
        question = questions.quick if self._connection.life.backend is not None else questions.full
        if question is None:
            return None
        if _notifies(query):
            question = questions.assigning or question
        # On a line of its own, since the statement may end in a comment.
        return f"\n;{question}" + (f";\n{self._record.insertion}" if self._record else "")

    def hear(self, answer: PGresult, rows: int) -> None:
        """Take the answer to the question that went along with a statement of so many rows."""
        testimony = testify(self._connection, answer)
        if testimony is not None and testimony.xid is not None:
            self.testimony = testimony
        elif rows > 0:
            # Rows of a foreign server, whose transaction ends with this one.
            self.has_to_ask = True

    @property
    def ghost(self) -> Testimony | None:
        """What may hold locks for the transaction when its connection is lost before COMMIT."""
        backend = self._connection.life.backend
        return self.testimony or (Testimony(None, backend) if backend is not None else None)

    def ask(self) -> None:
        """Ask in a round trip of its own, and let the transaction have an id if it has none.

        For what a function or another kind of cursor wrote, and for what a savepoint undid.
        """
        questions = known(self._connection)
        question = questions.assigning or questions.full
        self._ask(question, self._record.insertion_if_missing if self._record else None)

    def ask_whether_it_wrote(self) -> bool:
        """Ask in a round trip of its own whether the transaction has an id."""
        self._ask(known(self._connection).full, None)
        return self.testimony is not None

    def _ask(self, question: str | None, insertion: str | None) -> None:
        statements = [statement for statement in (question, insertion) if statement is not None]
        if not statements:
            return
        # Not by the connection's own kind of cursor, on which something would ride.
        cursor = psycopg.ClientCursor(self._connection)
        cursor.execute(";\n".join(statements))
        answer = seam.take_results(cursor, len(statements))
        if question is not None:
            self.hear(answer, rows=0)


class RidingCursor(Cursor):
    """Django's cursor; within an attempt it lets the attempt's question ride along.

    It is of no use any more when its connection has gone back to the pool: others may be in the
    middle of something there.
    """

    __slots__ = ("_owner", "_pooled")

    def __init__(self, connection: Any, *, row_factory: Any = None) -> None:
        super().__init__(connection, row_factory=row_factory)
        # Who takes Django's parameters to psycopg gets a connection of psycopg's.
        self._pooled = connection if isinstance(connection, PooledConnection) else None
        self._owner = None if self._pooled is None else self._pooled.owner

    def execute(
        self,
        query: Any,
        params: Any = None,
        *,
        prepare: bool | None = None,
        binary: bool | None = None,
    ) -> Self:
        """As psycopg's; its results are those of *query* alone."""
        pooled = self._pooled
        if pooled is not None and pooled.owner is not self._owner:
            self._refuse_if_given_back()
        rider = None if pooled is None else pooled.rider
        addition = None if rider is None else rider.addition_to(query)
        if rider is None or addition is None:
            super().execute(query, params, prepare=prepare, binary=binary)
        else:
            super().execute(query + addition, params, prepare=prepare, binary=binary)
            rider.hear(seam.take_results(self, rider.statements, addition), self.rowcount)
        return self

    def executemany(self, *args: Any, **options: Any) -> None:
        """As psycopg's."""
        self._refuse_if_given_back()
        super().executemany(*args, **options)

    def copy(self, *args: Any, **options: Any) -> Any:
        """As psycopg's."""
        self._refuse_if_given_back()
        return super().copy(*args, **options)

    def stream(self, *args: Any, **options: Any) -> Any:
        """As psycopg's."""
        self._refuse_if_given_back()
        return super().stream(*args, **options)

    def _refuse_if_given_back(self) -> None:
        pooled = self._pooled
        if pooled is not None and pooled.owner is not self._owner and not self.closed:
            raise psycopg.InterfaceError("the cursor's connection went back to its pool")

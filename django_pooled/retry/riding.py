"""A question that rides with a statement: the transaction's id comes with its first write."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from django.db.backends.postgresql import base as postgresql
from django.db.transaction import TransactionManagementError
from psycopg.pq import PipelineStatus, TransactionStatus

from django_pooled import psycopg_seam as seam

from .witness import FULL_QUESTION, QUICK_QUESTION, assigning, testify

if TYPE_CHECKING:
    import psycopg
    from psycopg.pq.abc import PGresult
    from typing_extensions import Self

    from django_pooled.connection import PooledConnection

    from .witness import Testimony

__all__ = ["Rider", "RidingCursor", "may_write"]

# A statement that may give the transaction an id. What is missed here costs a round trip before
# COMMIT, and what is caught needlessly a few microseconds.
_MAY_WRITE = re.compile(
    r"""(?xis)
    \s* (?: /\*.*?\*/ \s* )*
    (?: INSERT | UPDATE | DELETE | MERGE | CALL | DO | TRUNCATE | CREATE | ALTER | DROP | NOTIFY
      | WITH \b .* \b (?: INSERT | UPDATE | DELETE | MERGE )
      | SELECT \b .* \b FOR \s+ (?: NO \s+ KEY \s+ | KEY \s+ )? (?: UPDATE | SHARE )
      | SELECT \b .* \b pg_notify
    ) \b
    """
)

# NOTIFY gets its id only while COMMIT is under way, when nobody can ask any more: so it is
# given one at once, lest "no id" be taken for "nothing to lose".
_NOTIFIES = re.compile(r"(?i)^\s*NOTIFY\b|\bpg_notify\b")


def may_write(query: object) -> bool:
    """Tell whether a statement looks as if it wrote something."""
    return _MAY_WRITE.match(str(query)) is not None


if TYPE_CHECKING:
    Cursor = psycopg.ClientCursor[Any]  # django-stubs knows nothing of its methods
else:
    Cursor = postgresql.Cursor


class Rider:
    """What has to be known of a transaction before its COMMIT, asked without a round trip.

    Args:
        connection: That of the transaction.
        record: A statement that has to be run once, as soon as the transaction has an id; run
            before that it has no effect.
    """

    def __init__(self, connection: PooledConnection, record: str | None = None) -> None:
        self.testimony: Testimony | None = None
        """Set once the transaction has an id."""
        self._connection = connection
        self._record = f"{record};\n" if record is not None else ""
        self.statements = 1 if record is None else 2
        """Of how many statements an addition consists."""
        self.is_to_ask = False
        """Whether something was written that gave the transaction no id."""
        self._began = False
        connection.rider = self

    def dismount(self) -> None:
        """The transaction is over, and with it the ride."""
        if self._connection.rider is self:
            self._connection.rider = None

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
        """Return what to send along with *query*, if anything."""
        if self.testimony is not None or not isinstance(query, str) or not may_write(query):
            return None
        if self._connection.pgconn.pipeline_status != PipelineStatus.OFF:
            # Takes one statement at a time.
            return None
        question = QUICK_QUESTION if self._connection.life.server is not None else FULL_QUESTION
        if _NOTIFIES.search(query):
            question = assigning(question)
        # On a line of its own, since the statement may end in a comment.
        return f"\n;{self._record}{question}"

    def hear(self, answer: PGresult, rows: int) -> None:
        """Take the answer to the question that went along with a statement of so many rows."""
        testimony = testify(self._connection, answer)
        if testimony is not None and testimony.xid is not None:
            self.testimony = testimony
        elif rows > 0:
            # Rows of a foreign server, whose transaction ends with this one.
            self.is_to_ask = True

    def ask(self) -> None:
        """Ask in a round trip of its own, and let the transaction have an id if it has none.

        For what a function or another kind of cursor wrote.
        """
        question = self._record + assigning(FULL_QUESTION)
        cursor = self._connection.execute(question, prepare=False)
        self.hear(seam.take_results(cursor, self.statements), rows=0)


class RidingCursor(Cursor):
    """Django's cursor; within an attempt it lets the attempt's question ride along."""

    def execute(self, query: Any, params: Any = None, **options: Any) -> Self:
        """As psycopg's; its results are those of *query* alone."""
        rider: Rider | None = getattr(self.connection, "rider", None)
        if rider is None:
            super().execute(query, params, **options)
            return self
        rider.refuse_if_ended()
        addition = rider.addition_to(query)
        if addition is None:
            super().execute(query, params, **options)
        else:
            super().execute(query + addition, params, **options)
            rider.hear(seam.take_results(self, rider.statements, addition), self.rowcount)
        return self

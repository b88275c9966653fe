"""Reads outside of transactions survive the loss of their connection, those of middleware too."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
from asgiref.sync import sync_to_async
from django.db import Error, connections
from django.utils.deprecation import MiddlewareMixin
from psycopg.pq import TransactionStatus

from django_pooled.backend.databases import loads_as_ours
from django_pooled.pool import psycopg_private
from django_pooled.retry.decorator import retry_transaction
from django_pooled.sql.effects import only_reads
from django_pooled.sql.sqlstates import READ_ONLY, sqlstate_of
from django_pooled.views.options import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from django.http import HttpRequest
    from django.http.response import HttpResponseBase

    from django_pooled.backend.wrapper import DatabaseWrapper

__all__ = ["RetryReadsMiddleware"]


class RetryReadsMiddleware(MiddlewareMixin):
    """Send a read again if its connection is lost, unless it is part of a transaction.

    That concerns middleware, before and after the view, and views without a transaction; see
    docs/whole_site.md. Each statement whose text shows that it only reads is run in a READ ONLY
    transaction of its own, so the server guarantees that nothing is written. One that the server
    refuses there is sent as before. It takes a round trip more, for COMMIT.

    Works under WSGI and ASGI. Place it before all middleware that queries.
    """

    get_response: Any
    """The next middleware, or the view."""

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        super().__init__(get_response)
        self._reads = {
            alias: _Reads(alias)
            for alias, entry in connections.settings.items()
            if loads_as_ours(entry)
        }

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        if self.async_mode:
            return self.__acall__(request)
        with self._retrying():
            response: HttpResponseBase = self.get_response(request)
            return response

    async def __acall__(self, request: HttpRequest) -> HttpResponseBase:
        stack = ExitStack()
        # Connections belong to the thread in which Django runs what is sync of this request.
        await sync_to_async(stack.enter_context)(self._retrying())
        try:
            response: HttpResponseBase = await self.get_response(request)
            return response
        finally:
            await sync_to_async(stack.close)()

    @contextmanager
    def _retrying(self) -> Iterator[None]:
        with ExitStack() as stack:
            for alias, reads in self._reads.items():
                stack.enter_context(connections[alias].execute_wrapper(reads))
            yield


class _Statement:
    """A statement that Django is about to execute."""

    __slots__ = ("arguments", "cursor", "execute", "result", "wrapper")

    def __init__(
        self, wrapper: DatabaseWrapper, cursor: psycopg.Cursor[Any], execute: Any, arguments: Any
    ) -> None:
        self.wrapper = wrapper
        self.cursor = cursor
        self.execute = execute
        self.arguments = arguments
        self.result: Any = None

    def is_on_its_own(self) -> bool:
        """Tell whether nothing before it or after it can belong to the same transaction."""
        wrapper = self.wrapper
        if wrapper.in_atomic_block or isinstance(self.cursor, psycopg.ServerCursor):
            return False
        if wrapper.attempt is not None:
            # Sent as the connection of an attempt is set up, whose transaction comes next.
            return False
        if wrapper.allow_thread_sharing:
            # Statements of the other threads would become part of its transaction.
            return False
        connection = wrapper.connection
        if connection is None:
            return bool(wrapper.settings_dict["AUTOCOMMIT"])
        # One that is known to be lost may have had a transaction that was begun by hand.
        return (
            wrapper.autocommit
            and connection.autocommit
            and connection.pgconn.transaction_status == TransactionStatus.IDLE
            and not psycopg_private.is_piping(connection)
        )


class _Reads:
    """Executes the statements of one database, as `django.db.connection.execute_wrapper` has it.

    Args:
        using: Key of the database.
    """

    def __init__(self, using: str) -> None:
        def read(statement: _Statement) -> None:
            # Another attempt has another connection.
            statement.wrapper.move_here(statement.cursor)
            statement.result = statement.execute(*statement.arguments)

        # By which logs, signals and the retry budget know it.
        read.__qualname__ = RetryReadsMiddleware.__qualname__
        self._read = retry_transaction(using=using, read_only=True, deadline=DEADLINE)(read)

    def __call__(
        self, execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: Any
    ) -> Any:
        """Execute a statement."""
        wrapper, arguments = context["connection"], (sql, params, many, context)
        statement = _Statement(wrapper, context["cursor"].cursor, execute, arguments)
        # The text only tells what is worth trying; READ ONLY has the server decide.
        if many or not statement.is_on_its_own() or not only_reads(sql):
            return execute(*arguments)
        try:
            self._read(statement)
        except Error as error:
            if sqlstate_of(error) != READ_ONLY:
                raise
            # It writes after all, by a function: nothing of it was done.
            return execute(*arguments)
        return statement.result

"""The database backend: Django's PostgreSQL wrapper, with connections checked out of a pool."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from weakref import ref

from django_pooled.diagnostics.required_packages import missing_package, refusal

if (_missing := missing_package()) is not None:
    raise refusal(_missing)

import psycopg
from django.conf import settings
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.postgresql import base as postgresql
from django.utils.asyncio import async_unsafe
from django.utils.functional import cached_property
from psycopg import IsolationLevel
from psycopg.pq import ConnStatus, TransactionStatus

from django_pooled.errors import DeadlineExceeded, PoolError
from django_pooled.integrations import uwsgi
from django_pooled.integrations.celery import closes_around_a_task, runs_a_task
from django_pooled.pool import psycopg_private, registry
from django_pooled.pool.connection import PooledConnection
from django_pooled.pool.deadline import call_with_grace
from django_pooled.pool.lane_context import current as current_lane
from django_pooled.pool.lane_context import lane, lane_of_caller
from django_pooled.pool.psycopg_pipeline import IS_SUPPORTED

from . import foreign_options, thread_wrappers, transaction_thread
from .addresses import refuse_addresses
from .client import DatabaseClient
from .creation import DatabaseCreation
from .credentials import resolved
from .cursors import observed
from .django_private import NO_DB_ALIAS, Cursor, DatabaseErrorWrapper, get_adapters_template
from .ownership import Ownership
from .parameters import copied, first_of_equal, isolation_level_of, server_of, with_defaults
from .pool_lookup import PoolLookup
from .sql_comments import Commenter
from .transaction_mode_cursors import TransactionModeCursor, for_transaction_mode
from .unattended import this_thread

if TYPE_CHECKING:
    from datetime import tzinfo
    from types import TracebackType

    from django_pooled.pool.pool import Pool
    from django_pooled.pool.waiter import Waiter

__all__ = ["DatabaseWrapper"]

_ENDED = (TransactionStatus.IDLE, TransactionStatus.UNKNOWN)

_CURSORS = 100
"""Cursors of a connection after which those that are gone are forgotten."""

# The "type: ignore"s below stand where django-stubs does not know a method that Django has.


class _ErrorWatch(DatabaseErrorWrapper):
    """Django's translation of psycopg's errors, which also shows each to the wrapper."""

    wrapper: DatabaseWrapper

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Ours are psycopg errors too, for code that catches those, and are Django's already.
        if exc_type is not None and not issubclass(exc_type, PoolError):
            if isinstance(exc_value, psycopg.Error):
                self.wrapper.note_error(exc_value)
            if not issubclass(exc_type, DeadlineExceeded):
                super().__exit__(exc_type, exc_value, traceback)


class _PoolOfSettings:
    """The attribute `pool` of wrappers that have no connection of a pool, which they set."""

    def __get__(self, wrapper: DatabaseWrapper | None, kind: type) -> Any:
        if wrapper is None:
            return self
        if wrapper.connection is not None or not wrapper.is_pooled:
            return wrapper.checked_out_from
        return wrapper._lookup.find(wrapper, wrapper.get_connection_params())


class DatabaseWrapper(Ownership):
    """Django's wrapper, except for where its connections come from and go."""

    client_class: type[DatabaseClient] = DatabaseClient
    creation_class: type[DatabaseCreation] = DatabaseCreation

    rollback_exc: BaseException | None
    """Django's own, which django-stubs does not know."""

    closings: int

    queued: tuple[Pool, Waiter] | None = None
    """A wait that has begun without a thread, for the next checkout to go on with."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        thread_wrappers.note(self)
        self._lookup: PoolLookup = PoolLookup()
        pool = self.settings_dict["OPTIONS"].get("pool")
        if isinstance(pool, Mapping) and (comments := pool.get("sql_comments")):
            self.execute_wrappers.append(Commenter(comments if comments is not True else None))

    @property
    def is_pooled(self) -> bool:
        """Whether connections come from a pool.

        Those for maintenance do not, nor do any with ``OPTIONS["pool"] = False``: they are
        opened, kept and closed as Django's own backend does.
        """
        return self.alias != NO_DB_ALIAS and self.settings_dict["OPTIONS"].get("pool") is not False

    pool: Pool | None = _PoolOfSettings()  # type: ignore[assignment]
    """The pool of this wrapper's connection; without one, the pool that its settings lead to.

    None where `is_pooled` is false. Django asks before it configures a connection, since
    those of a pool have been configured when they were opened.
    """

    @cached_property
    def timezone(self) -> tzinfo | None:
        """As Django's."""
        zone = super().timezone
        return None if zone is None else first_of_equal(zone)

    @property
    def last_pool(self) -> Pool | None:
        """The pool of its last checkout, if that is still the one for its settings."""
        known = self._lookup.pool
        return None if known is None else known[1]

    def get_connection_params(self) -> dict[str, Any]:
        # Those of a backend behind this one, or of a patch of Django's, may follow from anything.
        behind = getattr(super().get_connection_params, "__func__", None)
        if getattr(behind, "__globals__", None) is not vars(postgresql):
            return self._work_out_params()
        known = self._lookup.parameters
        now = (self.settings_dict, self.timezone_name, self.timezone, os.getpid())
        if known is not None and known[0] == now:
            return dict(known[1])
        return self._lookup.work_out(self, self._work_out_params)

    def _work_out_params(self) -> dict[str, Any]:
        # Before Django's own look at them: it quotes a NAME that is too long.
        refuse_addresses(self.alias, self.settings_dict)
        # Threads that make the first call together get a map of adapters each, of which Django's
        # cache keeps one. Pools are told apart by it, and the next call gets that one.
        get_adapters_template(settings.USE_TZ, self.timezone)
        params = with_defaults(super().get_connection_params())
        factory = params["cursor_factory"]
        # A cursor of another class that is on no pool's connection stays what it is. Its connection
        # sees that something is sent, though not what.
        if self.is_pooled or factory is Cursor:
            params["cursor_factory"] = factory = observed(factory)
        pool = self.settings_dict["OPTIONS"].get("pool")
        if isinstance(pool, Mapping) and pool.get("pool_mode") == "transaction":
            params["cursor_factory"] = for_transaction_mode(factory)
        return params

    @async_unsafe
    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        options = self.settings_dict["OPTIONS"]
        sets_isolation_level = "isolation_level" in options
        # Before the checkout, so that a wrong level costs no connection.
        self.isolation_level = (
            isolation_level_of(self.alias, self.settings_dict)
            if sets_isolation_level
            else IsolationLevel.READ_COMMITTED
        )
        if self.alias != NO_DB_ALIAS and options.get("pool") is not False:
            known = self._lookup.pool
            now = (conn_params, self.timezone_name, options.get("assume_role"), os.getpid())
            if known is not None and known[0] == now and not known[1].closed:
                pool = known[1]
            else:
                pool = self._lookup.find(self, conn_params)
            connection: Any = pool.checkout() if self.queued is None else self._next_in_line(pool)
            self.checked_out_from = self.pool = pool
            has_end = this_thread.has_end
            if has_end is None:
                has_end = this_thread.find_out()
            self.gives_back = pool.transaction_mode or not (has_end or self._has_end)
            connection.carries = pool.options.pipeline and IS_SUPPORTED
        else:
            foreign_options.refuse_leftovers(self.alias, self.settings_dict)
            connection = PooledConnection.connect(**resolved(conn_params))
        # A connection without an owner does not look at its statements.
        connection.owner = ref(self)
        if sets_isolation_level:
            connection.isolation_level = self.isolation_level
        return connection

    def connect(self) -> None:
        if callable(current_lane.get()) and _has_lanes(self.settings_dict["OPTIONS"]):
            self._connect_in_lane()
            return
        with self._connection_lock:
            if self.connection is not None and self.gives_back:
                # Another thread that shares this wrapper was first.
                return
            self._keeps += 1
            try:
                super().connect()
            finally:
                self._keeps -= 1

    def _connect_in_lane(self) -> None:
        before = self.connection
        # Before the checkout: a converter of a URL may query too, and by this wrapper.
        with lane(lane_of_caller()):
            if self.connection is before:
                # Without what a backend built on this one does around it: that is under way.
                DatabaseWrapper.connect(self)

    def _next_in_line(self, pool: Pool) -> PooledConnection:
        queued, self.queued = self.queued, None
        if queued is None:  # pragma: no cover - told to mypy
            return pool.checkout()
        queue, waiter = queued
        try:
            if queue is pool:
                return pool.checkout(waiter)
        finally:
            # Of use no more, whatever has come of it.
            queue.leave(waiter)
        return pool.checkout()

    def set_autocommit(self, autocommit: bool, *args: Any, **kwargs: Any) -> None:
        connection, pool = self.connection, self.checked_out_from
        if not autocommit:
            # What the last transaction did is undone, if that was not committed.
            self._pending_in = None
            # An interruption may have struck between the checkout and the end of connect().
            is_there = pool is not None and connection is not None
            if is_there and connection.pgconn.status != ConnStatus.OK:
                # An error has shown that it is lost: a transaction on it would fail.
                connection = self.replace(connection)
        # Atomic.__exit__ ends a transaction whose connection was lost with set_autocommit(True),
        # for which Django would connect anew: with the server away, a long wait whose error
        # replaces the one that matters. The next use connects, and starts in autocommit. And a
        # connection of a pool is in autocommit when it is checked out. In a transaction that was
        # begun by other means psycopg refuses it.
        if not autocommit or not (
            self._starts_in_autocommit
            if connection is None
            else connection.autocommit and connection.pgconn.transaction_status in _ENDED
        ):
            super().set_autocommit(autocommit, *args, **kwargs)
        else:
            self.validate_no_atomic_block()
            self.autocommit = True
            if self.run_commit_hooks_on_set_autocommit_on:
                # With the connection lost, another one has found the transaction committed.
                self.run_and_clear_commit_hooks()
                self.run_commit_hooks_on_set_autocommit_on = False
        if self.gives_back:
            self.give_back_if_idle()

    def run_and_clear_commit_hooks(self) -> None:
        # They belong to what is committed, also if its deadline has ended meanwhile.
        run = super().run_and_clear_commit_hooks
        if self.run_on_commit:
            call_with_grace(run)
        else:
            run()

    def get_autocommit(self) -> bool:
        # Without a checkout: in transaction mode the connection would stay until a statement.
        if self.connection is None and not self.in_atomic_block and self._starts_in_autocommit:
            return True
        return bool(super().get_autocommit())

    def close_if_unusable_or_obsolete(self) -> None:
        # At both ends of a request: back to the pool, which checks the connection itself.
        if self.checked_out_from is not None:
            if transaction_thread.current.get() is None or self.attempt is None:
                self.close()
            # Else it is no end of a request, but Channels' database_sync_to_async() in a coroutine,
            # which does so around each call.
            return
        self.closings += 1
        super().close_if_unusable_or_obsolete()

    # Where PostgreSQL's asks for the pool, which checks its connections itself.
    close_if_health_check_failed = BaseDatabaseWrapper.close_if_health_check_failed

    def create_cursor(self, name: str | None = None) -> Any:
        present = transaction_thread.current.get()
        if present is not None:
            transaction_thread.tell_if_elsewhere(present, self.alias)
        with self._connection_lock:
            connection = self.connection
            if connection is None:
                self.connect_and_keep()
            elif connection.pgconn.status != ConnStatus.OK and self.checked_out_from is not None:
                # An error has shown that it is lost.
                self.replace(connection)
            if name is not None:
                cursor = self.make_named_cursor(name)
            elif self.gives_back:
                cursor = self.make_moving_cursor()
            else:
                cursor = super().create_cursor()
            if self.gives_back:
                # One of a class that was set on the connection stays with that connection.
                if isinstance(cursor, TransactionModeCursor):
                    cursor.source, cursor.made_after = self, self.closings
            elif name is None and self.checked_out_from is not None:
                if this_thread.in_request:
                    for use in self.connection.uses:
                        if not use.activity:
                            use.name_again()
                self._cursors.append(ref(cursor))
                if len(self._cursors) >= _CURSORS:
                    self._cursors = [each for each in self._cursors if each() is not None]
            return cursor

    def close_pool(self) -> None:
        """Close this process's connections to the database; the next use opens new ones.

        Django does so before it drops or copies a database, which fails as long as any session is
        in it: so those of other aliases of the same database (test mirrors) are closed too. A
        call that Celery makes around a task has no effect: see integrations/celery.py.
        """
        if not closes_around_a_task():
            registry.close_pools_of(self.alias, timeout=1.0, server=server_of(self.settings_dict))

    def ensure_timezone(self) -> bool:
        self.close_pool()
        if self.connection is None:
            return False
        return bool(self._configure_timezone(self.connection))  # type: ignore[attr-defined]

    @cached_property
    def wrap_database_errors(self) -> _ErrorWatch:
        return _ErrorWatch(self)

    def note_error(self, error: psycopg.Error) -> None:
        """Take note of an error on the connection, before any code swallows it."""
        if self.attempt is not None:
            self.attempt.note_error(error)
        if self.checked_out_from is not None and isinstance(self.connection, PooledConnection):
            self.checked_out_from.note_error(self.connection, error)

    @property
    def _starts_in_autocommit(self) -> bool:
        return self.is_pooled and bool(self.settings_dict["AUTOCOMMIT"])

    def copy(self, alias: str | None = None) -> DatabaseWrapper:
        """Return a wrapper of its own for the same settings, without a connection.

        Django's makes a deep copy of them, which fails for an object with a lock: a callable that
        fetches credentials may be a method of a service's client.
        """
        return type(self)(copied(self.settings_dict), alias or self.alias)

    @property
    def _has_end(self) -> bool:
        # A wrapper that threads share belongs to the code that has made it so.
        return self.allow_thread_sharing or runs_a_task()

    def close(self) -> None:
        """As Django's; a cursor that was made before gets no connection afterwards."""
        self.closings += 1
        super().close()

    def _close(self) -> None:
        pool = self.checked_out_from
        if pool is None or not isinstance(self.connection, PooledConnection):
            super()._close()  # type: ignore[misc]
            return
        try:
            if self._named_cursors is not None:
                self.close_named_cursors()
        finally:
            for each in self._cursors:
                cursor = each()
                if cursor is not None and cursor.closed:
                    # It is of no use any more, but would keep the connection from being used again.
                    psycopg_private.part(cursor)
            cursor = None
            # The pool makes another object for the session if anything still refers to this one.
            holder = [self.connection]
            self.connection, self.checked_out_from, self._cursors = None, None, []
            self.gives_back = False
            del self.pool
            pool.checkin_from(holder)


def _has_lanes(options: Mapping[str, Any]) -> bool:
    pool = options.get("pool")
    return isinstance(pool, Mapping) and pool.get("lanes") is not None


def _after_fork_in_child() -> None:
    for wrapper in connections.all(initialized_only=True):
        if isinstance(wrapper, DatabaseWrapper):
            wrapper.forget_connection()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
uwsgi.call_after_fork(_after_fork_in_child)

"""The database backend: Django's PostgreSQL wrapper, with connections checked out of a pool."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Any
from weakref import ref

from django.core.exceptions import SynchronousOnlyOperation

from django_pooled.diagnostics.required_packages import missing_package, refusal

if (_missing := missing_package()) is not None:
    raise refusal(_missing)

import psycopg
from django.conf import settings
from django.db import Error, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.postgresql import base as postgresql
from django.utils.asyncio import async_unsafe
from django.utils.functional import cached_property
from psycopg import IsolationLevel
from psycopg.pq import ConnStatus, TransactionStatus

from django_pooled.errors import AmbiguousCommit, DeadlineExceeded, PoolError
from django_pooled.integrations import tenants, uwsgi
from django_pooled.integrations.celery import closes_around_a_task, runs_a_task
from django_pooled.pool import psycopg_private, registry
from django_pooled.pool.connection import PooledConnection
from django_pooled.pool.deadline import call_with_grace
from django_pooled.pool.psycopg_pipeline import IS_SUPPORTED
from django_pooled.pool.transaction_control import Control, TransactionControl

from . import foreign_options, thread_wrappers, transaction_thread
from .addresses import refuse_addresses
from .commit import close_if_interrupted, commit_once
from .cursors import observed
from .django_private import NO_DB_ALIAS, Cursor, DatabaseErrorWrapper, get_adapters_template
from .parameters import (
    copied,
    first_of_equal,
    isolation_level_of,
    resolved,
    server_of,
    with_defaults,
)
from .pool_lookup import PoolLookup
from .replacement import Replacement
from .sql_comments import Commenter
from .transaction_mode_cursors import TransactionModeCursor, for_transaction_mode
from .unattended import this_thread

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import tzinfo
    from types import TracebackType

    from django_pooled.pool.pool import Pool
    from django_pooled.pool.transaction_control import Kind

    from .transaction_hooks import TransactionHooks

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


class DatabaseWrapper(Replacement):
    """Django's wrapper, except for where its connections come from and go."""

    rollback_exc: BaseException | None
    """Django's own, which django-stubs does not know."""

    closings: int

    has_lasting_effects: bool = False
    """Whether statements of the request may have changed something for good, by their texts."""

    _pending_effects: bool = False
    """Whether those of the transaction may, which count with its COMMIT."""

    attempt: TransactionHooks | None = None
    """Set by retry_transaction for as long as one attempt of a transaction lasts."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        thread_wrappers.note(self)
        self._lookup = PoolLookup()
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
            connection: Any = pool.checkout()
            self.checked_out_from = self.pool = pool
            self.gives_back = pool.transaction_mode or not (this_thread.has_end or self._has_end)
            connection.carries = pool.options.pipeline and IS_SUPPORTED
        else:
            foreign_options.refuse_leftovers(self.alias, self.settings_dict)
            connection = PooledConnection.connect(**resolved(conn_params))
        # A connection without an owner does not look at its statements.
        connection.owner = ref(self)
        if sets_isolation_level:
            connection.isolation_level = self.isolation_level
        return connection

    def set_autocommit(self, autocommit: bool, *args: Any, **kwargs: Any) -> None:
        connection, pool = self.connection, self.checked_out_from
        if not autocommit:
            # What the last transaction did is undone, if that was not committed.
            self._pending_effects = False
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
                self._cursors.append(ref(cursor))
                if len(self._cursors) >= _CURSORS:
                    self._cursors = [each for each in self._cursors if each() is not None]
            return cursor

    def get_autocommit(self) -> bool:
        # Without a checkout: in transaction mode the connection would stay until a statement.
        if self.connection is None and not self.in_atomic_block and self._starts_in_autocommit:
            return True
        return bool(super().get_autocommit())

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

    def note_write(self, connection: PooledConnection) -> None:
        """A statement on *connection* changes something, or may do so."""
        idle = connection.pgconn.transaction_status == TransactionStatus.IDLE
        if connection.autocommit and idle:
            # Now, since the answer may be lost.
            self.has_lasting_effects = True
        else:
            self._pending_effects = True

    def forget_effects(self) -> None:
        """A request begins."""
        self.has_lasting_effects = self._pending_effects = False

    def note_error(self, error: psycopg.Error) -> None:
        """Take note of an error on the connection, before any code swallows it."""
        if self.attempt is not None:
            self.attempt.note_error(error)
        if self.checked_out_from is not None and isinstance(self.connection, PooledConnection):
            self.checked_out_from.note_error(self.connection, error)

    def forget_connection(self) -> None:
        """After fork(): forget the parent's connection, without telling the server."""
        self._part()
        self._lookup.forget()
        self.in_atomic_block = self.needs_rollback = False
        self.savepoint_ids, self.atomic_blocks, self.run_on_commit = [], [], []
        self.attempt = None
        # Nothing is left to close, but a backend built on this one may forget in close() what it
        # knew of the session. Where an event loop runs, Django refuses, but only after that.
        with suppress(SynchronousOnlyOperation):
            self.close()

    def _commit(self) -> None:
        if self.connection is None:
            return
        try:
            send = super()._commit  # type: ignore[misc]
            if self.attempt is None:
                self._end_transaction(partial(commit_once, self, send))
            else:
                self._end_transaction(partial(self.attempt.commit, send))
        except BaseException as error:
            close_if_interrupted(self, error)
            # Any other error of the database says that nothing was committed.
            if isinstance(error, AmbiguousCommit) or not isinstance(error, Error):
                self.has_lasting_effects |= self._pending_effects
            raise
        self.has_lasting_effects |= self._pending_effects

    def _rollback(self) -> None:
        try:
            self._end_transaction(super()._rollback)  # type: ignore[misc]
        except BaseException as error:
            close_if_interrupted(self, error)
            raise

    def _end_transaction(self, end: Callable[[], None]) -> None:
        """Let Django end the transaction, which its body must not do."""
        connection = self.connection
        if not isinstance(connection, PooledConnection):
            end()
            return
        if connection.control is not None:
            connection.end_savepoints()
        thread = connection.announced_by = get_ident()
        try:
            end()
        finally:
            if connection.announced_by == thread:
                connection.announced_by = 0

    def on_commit(self, func: Callable[[], object], robust: bool = False) -> None:
        """As Django's; called by a coroutine, it is for the transaction that this takes part in.

        That belongs to a wrapper of another thread. Without this, *func* would be called at once.
        """
        serving = transaction_thread.serving_transaction_of(self.alias)
        func = transaction_thread.as_callback(func)
        if serving is None or not callable(func):
            super().on_commit(func, robust)
        else:
            # Before COMMIT in any case: that is sent once the thread has nothing more to run.
            serving.submit(_register_on_commit, self.alias, func, robust)

    def run_and_clear_commit_hooks(self) -> None:
        # They belong to what is committed, also if its deadline has ended meanwhile.
        run = super().run_and_clear_commit_hooks
        if self.run_on_commit:
            call_with_grace(run)
        else:
            run()

    def set_rollback(self, rollback: bool) -> None:
        super().set_rollback(rollback)
        if self.attempt is not None:
            self.attempt.set_rollback(rollback)

    def _savepoint(self, sid: str) -> None:
        create = super()._savepoint  # type: ignore[misc]
        self._control("SAVEPOINT", sid, self.ops.savepoint_create_sql, create)

    def _savepoint_rollback(self, sid: str) -> None:
        end = super()._savepoint_rollback  # type: ignore[misc]
        send = partial(self._control, "ROLLBACK", sid, self.ops.savepoint_rollback_sql, end)
        if self.attempt is not None:
            send = partial(self.attempt.roll_back_savepoint, send)
        # A deadline of the block that is undone must not break the transaction around it.
        call_with_grace(send)

    def _savepoint_commit(self, sid: str) -> None:
        end = super()._savepoint_commit  # type: ignore[misc]
        send = partial(self._control, "RELEASE", sid, self.ops.savepoint_commit_sql, end)
        if self.attempt is not None:
            send = partial(self.attempt.release_savepoint, send)
        # Django releases one that was rolled back to as well.
        call_with_grace(send)

    def _control(
        self,
        kind: Kind,
        savepoint: str,
        statement_for: Callable[[str], str],
        send: Callable[[str], None],
    ) -> None:
        """Let Django execute a statement that may wait for the next one."""
        connection = self.connection
        if not isinstance(connection, PooledConnection) or not connection.carries:
            send(savepoint)
            return
        control = connection.control
        if control is None:
            control = connection.control = TransactionControl()
        control.expected = Control(kind, savepoint, statement_for(savepoint))
        try:
            send(savepoint)
        finally:
            control.expected = None

    def abandon_block(self) -> None:
        """Leave every atomic block; the transaction is rolled back as the connection goes back."""
        self.in_atomic_block = self.needs_rollback = self.closed_in_transaction = False
        self.savepoint_ids, self.atomic_blocks = [], []
        self.close()

    @property
    def _starts_in_autocommit(self) -> bool:
        return self.is_pooled and bool(self.settings_dict["AUTOCOMMIT"])

    def copy(self, alias: str | None = None) -> DatabaseWrapper:
        """Return a wrapper of its own for the same settings, without a connection.

        Django's makes a deep copy of them, which fails for an object with a lock: a callable that
        fetches credentials may be a method of a service's client.
        """
        return type(self)(copied(self.settings_dict), alias or self.alias)

    def drop_connection(self) -> None:
        """Give back a connection in whatever state, since its transaction is of no use any more."""
        # Through close(), where a backend built on this one forgets what it knew of the session,
        # such as its search_path. The callbacks wait for the outcome of the
        # transaction.
        callbacks = self.run_on_commit
        self.give_back()
        self.run_on_commit = callbacks

    def adopt_connection(self, other: DatabaseWrapper) -> None:
        """Take over the connection of *other*, which has none afterwards."""
        self.connection, self.checked_out_from = other.connection, other.checked_out_from
        self.pool, self.gives_back = self.checked_out_from, other.gives_back
        other._part()
        if isinstance(self.connection, PooledConnection):  # pragma: no branch - told to mypy
            self.connection.owner = ref(self)

    @property
    def is_setting_up(self) -> bool:
        """Whether the wrapper of a tenant sends its search_path, as on each connection it gets."""
        return tenants.is_setting_up(self)

    @property
    def _has_end(self) -> bool:
        # A wrapper that threads share belongs to the code that has made it so.
        return self.allow_thread_sharing or runs_a_task()

    def keeps(self, connection: PooledConnection) -> bool:
        """Tell whether this wrapper keeps the connection, though its thread has ended.

        It does while other threads may use it, as Django's live server does in tests. Else it
        forgets the connection, which will have other users.
        """
        # Where a thread waits for another connection with the lock held, this one is gone already.
        if self.connection is not connection:
            return False
        # Another thread may be allowed to use it at this moment, and begin to.
        with self._connection_lock:
            if self.connection is not connection:
                return False
            if self.allow_thread_sharing:
                return True
            self._part()
            return False

    def _part(self) -> None:
        """Forget the connection, and its pool with it."""
        self.connection = self.checked_out_from = None
        self.gives_back = False
        vars(self).pop("pool", None)

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


def _register_on_commit(alias: str, func: Callable[[], object], robust: bool) -> None:
    connections[alias].on_commit(func, robust)


def _after_fork_in_child() -> None:
    for wrapper in connections.all(initialized_only=True):
        if isinstance(wrapper, DatabaseWrapper):
            wrapper.forget_connection()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
uwsgi.call_after_fork(_after_fork_in_child)

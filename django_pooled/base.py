"""The database backend: Django's PostgreSQL wrapper, with connections checked out of a pool."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakSet, ref

from django.core.exceptions import ImproperlyConfigured, SynchronousOnlyOperation

try:
    import psycopg
except ImportError as error:
    # Django answers an ImportError with a list of its own backends.
    raise ImproperlyConfigured(
        "ENGINE 'django_pooled' needs psycopg 3: pip install 'psycopg[binary]'"
    ) from error

from django.db import connections
from django.db.backends.base.base import NO_DB_ALIAS
from django.db.backends.postgresql import base as postgresql
from django.db.utils import DatabaseErrorWrapper
from django.utils.asyncio import async_unsafe
from django.utils.functional import cached_property
from psycopg import IsolationLevel
from psycopg.pq import TransactionStatus

from . import conf, other_pools, registry, uwsgi_seam
from .celery_seam import closes_around_a_task
from .connection import PooledConnection
from .errors import PoolError
from .lending import LendingCursor, LendingNamedCursor
from .pool import Pool
from .retry.commit import commit, commit_once
from .retry.riding import RidingCursor
from .stats import session_name
from .validation import DatabaseValidation

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping
    from types import TracebackType

    from .retry.attempt import Attempt

__all__ = ["DatabaseWrapper"]

# The "type: ignore"s below stand where django-stubs does not know a method that Django has.

# A silent network loss ends in bounded time. Settings' OPTIONS win; a service file is left
# alone, since parameters given here would override it.
# https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS
NETWORK_DEFAULTS = {
    "connect_timeout": 10,  # seconds
    "keepalives": 1,
    "keepalives_idle": 30,  # seconds
    "keepalives_interval": 10,  # seconds
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,  # milliseconds
}
# What a connection can be in that is no end of a statement: its answer, a transaction.
_UNDER_WAY = (TransactionStatus.ACTIVE, TransactionStatus.INTRANS, TransactionStatus.INERROR)

FALLBACK_NAME = "fallback_application_name"


class _ErrorWatch(DatabaseErrorWrapper):
    """Django's translation of psycopg's errors, which also shows each to the wrapper."""

    wrapper: DatabaseWrapper

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # A PoolError is psycopg's too, for those who look for it, and is Django's already.
        if exc_type is not None and not issubclass(exc_type, PoolError):
            if isinstance(exc_value, psycopg.Error):
                self.wrapper.note_error(exc_value)
            super().__exit__(exc_type, exc_value, traceback)


class DatabaseWrapper(postgresql.DatabaseWrapper):
    """One thread's view of a database; its connection comes from the process's pool.

    It takes its place in front of another backend over Django's PostgreSQL backend::

        class DatabaseWrapper(django_pooled.base.DatabaseWrapper, other.DatabaseWrapper): ...

    What that one has to do once for each connection goes into ``_configure_connection()``, which
    the pool calls when it has opened one; its ``get_new_connection()`` is left out.
    """

    validation_class = DatabaseValidation

    rollback_exc: BaseException | None
    """Django's own, which django-stubs does not know."""

    attempt: Attempt | None = None
    """Set by retry_transaction for as long as one attempt of a transaction lasts."""

    _keeps = 0

    checked_out_from: Pool | None = None
    """The pool of the present connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._named_cursors: WeakSet[psycopg.Cursor[Any]] = WeakSet()
        self._last: tuple[tuple[dict[str, Any], str, str | None, int], Pool] | None = None

    @property
    def is_pooled(self) -> bool:
        """Whether connections come from a pool.

        Those for maintenance do not, nor do any with ``OPTIONS["pool"] = False``: they are
        opened, kept and closed as Django's own backend does.
        """
        return self.alias != NO_DB_ALIAS and self.settings_dict["OPTIONS"].get("pool") is not False

    @property
    def pool(self) -> Pool | None:
        """The pool of this wrapper's connection; without one, that which its settings lead to.

        None where `is_pooled` is false. Django asks before it configures a connection, since
        those of a pool have been configured when they were opened.
        """
        if self.connection is not None or not self.is_pooled:
            return self.checked_out_from
        return self._find_pool(self.get_connection_params())

    def get_connection_params(self) -> dict[str, Any]:
        params: dict[str, Any] = super().get_connection_params()
        if "service" not in params:
            params = {**NETWORK_DEFAULTS, **params}
        # A fallback: a name from OPTIONS, from a service file or in PGAPPNAME comes first.
        params.setdefault(FALLBACK_NAME, session_name(os.getpid(), socket.gethostname()))
        if params["cursor_factory"] is postgresql.Cursor:
            params["cursor_factory"] = RidingCursor
        return params

    @async_unsafe
    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        self.isolation_level = self._isolation_level()
        if self.is_pooled:
            pool = self._find_pool(conn_params)
            connection = pool.checkout()
            connection.owner = ref(self)
            self.checked_out_from = pool
        else:
            other_pools.refuse_leftovers(self.alias, self.settings_dict)
            connection = PooledConnection.connect(**resolved(conn_params))
        if "isolation_level" in self.settings_dict["OPTIONS"]:
            connection.isolation_level = self.isolation_level
        return connection

    def set_autocommit(self, autocommit: bool, *args: Any, **kwargs: Any) -> None:
        # Atomic.__exit__ ends a transaction whose connection was lost with set_autocommit(True),
        # for which Django would connect anew: with the server away, a long wait whose error
        # replaces the one that matters. The next use connects, and starts in autocommit.
        if self.connection is None and autocommit and self._starts_in_autocommit:
            self.validate_no_atomic_block()
            self.autocommit = True
            return
        super().set_autocommit(autocommit, *args, **kwargs)
        self.statement_ended()

    def get_autocommit(self) -> bool:
        # Without a checkout: in transaction mode the connection would stay until a statement.
        if self.connection is None and self._starts_in_autocommit:
            return True
        return bool(super().get_autocommit())

    def close_if_health_check_failed(self) -> None:
        if not self.is_pooled:
            super().close_if_health_check_failed()

    def close_if_unusable_or_obsolete(self) -> None:
        if not self.is_pooled:
            super().close_if_unusable_or_obsolete()
        elif self.connection is not None:
            # At both ends of a request: back to the pool, which looks for itself at its state.
            self.close()

    def close_pool(self) -> None:
        """Close this process's connections to the database; the next use opens new ones.

        Django does so before it drops or copies a database, which fails as long as any session is
        in it: so those of other aliases of the same database (test mirrors) are closed too. A
        call that Celery makes around a task has no effect: see celery_seam.py.
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

    def release(self) -> bool:
        """Give the connection back before the request ends, unless something on it is under way.

        That is a transaction or an open server-side cursor. Returns whether it went back.
        """
        if self.connection is None or self.in_atomic_block or not self.autocommit:
            return False
        if any(not cursor.closed for cursor in self._named_cursors):
            return False
        self.close()
        return True

    def create_cursor(self, name: str | None = None) -> Any:
        cursor = super().create_cursor(name)
        if name is not None:
            self._named_cursors.add(cursor)
        if not self._lends:
            return cursor
        return (LendingCursor if name is None else LendingNamedCursor)(self, cursor)

    def _cursor(self, name: str | None = None) -> Any:
        # Statements that are run on the way to one's own end nothing: those of receivers of
        # connection_created, or where somebody has put more into ensure_connection().
        self._keeps += 1
        try:
            return super()._cursor(name)  # type: ignore[misc]
        finally:
            self._keeps -= 1

    def bare_cursor(self) -> Any:
        """Return psycopg's cursor, on a connection that stays until `statement_ended`."""
        self._keeps += 1
        try:
            self.ensure_connection()
            return super().create_cursor(None)
        finally:
            self._keeps -= 1

    def connect(self) -> None:
        self._keeps += 1
        try:
            super().connect()
        finally:
            self._keeps -= 1

    def statement_ended(self) -> None:
        """In transaction mode: give the connection back unless something on it is under way."""
        connection = self.connection
        if (
            self._lends
            and self._keeps == 0
            and connection.pinned_by is None
            and connection.pgconn.transaction_status not in _UNDER_WAY
        ):
            self.release()

    def pin(self, state: str) -> None:
        """Keep the connection to the end of the request: a statement gives its session *state*.

        It is cleared of it when it comes back. Without effect in session mode, where others
        may have set up such state for all.
        """
        if self.connection.pinned_by is None and self.checked_out_from is not None:
            self.connection.pinned_by = state
            self.checked_out_from.count_pinned(state)

    def note_error(self, error: psycopg.Error) -> None:
        """Take note of an error on this wrapper's connection, before anything swallows it."""
        if self.attempt is not None:
            self.attempt.note(self, error)
        if self.checked_out_from is not None and isinstance(self.connection, PooledConnection):
            self.checked_out_from.note_error(self.connection, error)

    def forget_connection(self) -> None:
        """After fork(): let go of the parent's connection without a word to the server."""
        self.connection = self._last = None
        self.in_atomic_block = self.needs_rollback = False
        self.savepoint_ids, self.atomic_blocks, self.run_on_commit = [], [], []
        self.attempt = None
        # Nothing is left to close, but a backend built on this one forgets there what it knew of
        # the session. Where an event loop runs, Django refuses, but only after that.
        with suppress(SynchronousOnlyOperation):
            self.close()

    def _commit(self) -> None:
        if self.connection is None:
            return
        send = super()._commit  # type: ignore[misc]
        if self.attempt is None:
            commit_once(self, send)
        else:
            commit(self, self.attempt, send)
            # on_commit callbacks, which run next, have transactions of their own.
            self.attempt.end(self)

    def _savepoint_rollback(self, sid: str) -> None:
        super()._savepoint_rollback(sid)  # type: ignore[misc]
        if self.attempt is not None:
            self.attempt.forgive()

    @property
    def _lends(self) -> bool:
        pool = self.checked_out_from
        return pool is not None and pool.lends

    @property
    def _starts_in_autocommit(self) -> bool:
        return self.is_pooled and bool(self.settings_dict["AUTOCOMMIT"])

    def copy(self, alias: str | None = None) -> DatabaseWrapper:
        """Return a wrapper of its own for the same settings, without a connection.

        Django's copies everything in them, which fails for what has a lock: a callable that
        fetches credentials may be the method of a client of some service.
        """
        return type(self)(_copied(self.settings_dict), alias or self.alias)

    def drop_connection(self) -> None:
        """Give back a connection whose transaction is of no use any more, in whatever state."""
        # Through close(), where a backend built on this one forgets what it knew of the session,
        # such as its search_path. The callbacks wait for what becomes of the transaction.
        callbacks = self.run_on_commit
        self.close()
        self.run_on_commit = callbacks

    def adopt_connection(self, other: DatabaseWrapper) -> None:
        """Go on with the connection of *other*, which has none any more."""
        self.connection, self.checked_out_from = other.connection, other.checked_out_from
        other.connection = other.checked_out_from = None
        if isinstance(self.connection, PooledConnection):  # pragma: no branch - told to mypy
            self.connection.owner = ref(self)

    def keeps(self, connection: PooledConnection) -> bool:
        """Tell whether this wrapper, whose thread has ended, goes on holding the connection.

        It does while other threads may use it, as Django's live server does in tests. Else it
        lets go, since the connection will have other users.
        """
        if self.connection is not connection:
            return False
        if self.allow_thread_sharing:
            return True
        self.connection = self.checked_out_from = None
        return False

    def _close(self) -> None:
        connection, pool = self.connection, self.checked_out_from
        if not isinstance(connection, PooledConnection) or pool is None:
            super()._close()  # type: ignore[misc]
            return
        self._close_named_cursors()
        self.connection = self.checked_out_from = connection.rider = connection.owner = None
        with self.wrap_database_errors:
            pool.checkin(connection)

    def _close_named_cursors(self) -> None:
        # An iterator left off half-way would go on reading, and in the end close its cursor, on a
        # connection that somebody else has by then.
        for cursor in list(self._named_cursors):
            # A connection that is lost is none of this one's business: the checkin sees it.
            with suppress(psycopg.Error):
                cursor.close()

    def _find_pool(self, params: dict[str, Any]) -> Pool:
        role = self.settings_dict["OPTIONS"].get("assume_role")
        # The process counts too: not every fork() calls hooks.
        target = (params, self.timezone_name, role, os.getpid())
        # Comparing with the last one is an order of magnitude cheaper than finding by hash.
        if self._last is None or self._last[0] != target or self._last[1].closed:
            key = (_hashable(params), self.timezone_name, role)
            self._last = (
                target,
                registry.pool_for(self.alias, key, partial(self._make_pool, params)),
            )
        return self._last[1]

    def _make_pool(self, params: dict[str, Any]) -> Pool:
        options = conf.parse(self.alias, self.settings_dict)
        if not options.application_name and FALLBACK_NAME not in self.settings_dict["OPTIONS"]:
            params = {key: value for key, value in params.items() if key != FALLBACK_NAME}
        return Pool(
            self.alias,
            options,
            parameters=partial(resolved, {**params, "autocommit": True}),
            configure=self._configuration(),
            credentials_change=any(callable(params.get(key)) for key in ("user", "password")),
            server=server_of(self.settings_dict),
        )

    def _configuration(self) -> Callable[[PooledConnection], object]:
        # The pool outlives this wrapper and works in threads of its own, while composing SQL
        # asks the wrapper for a connection. So each new connection gets a wrapper for the
        # time of its configuration, with the settings as they were when the pool was made.
        template, timezone_name = self.copy(), self.timezone_name

        def configure(connection: PooledConnection) -> None:
            wrapper = template.copy()
            wrapper.timezone_name = timezone_name
            wrapper.connection = connection
            wrapper._configure_connection(connection)  # type: ignore[attr-defined]
            wrapper.connection = None

        return configure

    def _isolation_level(self) -> IsolationLevel:
        value = self.settings_dict["OPTIONS"].get("isolation_level", IsolationLevel.READ_COMMITTED)
        try:
            return IsolationLevel(value)
        except ValueError:
            levels = ", ".join(f"psycopg.IsolationLevel.{level.name}" for level in IsolationLevel)
            # Django's words first, which may be looked for.
            raise ImproperlyConfigured(
                f"Invalid transaction isolation level {value} specified. Use one of the "
                f"psycopg.IsolationLevel values. DATABASES[{self.alias!r}]['OPTIONS']"
                f"['isolation_level'] is {value!r}; expected one of {levels}."
            ) from None


def server_of(settings: Mapping[str, Any]) -> str:
    """Say which database an entry of ``settings.DATABASES`` leads to, for people."""
    options = settings["OPTIONS"]
    host = settings["HOST"] or options.get("host", "local socket")
    port = settings["PORT"] or options.get("port", 5432)
    name = options.get("dbname") or settings["NAME"] or f"service {options.get('service')}"
    return f"{host}:{port}/{name}"


def _copied(settings: Any) -> Any:
    """Copy dictionaries, and what they hold by reference."""
    if isinstance(settings, dict):
        return {key: _copied(value) for key, value in settings.items()}
    return settings


def resolved(params: Mapping[str, Any]) -> dict[str, Any]:
    """Call what has to be fetched anew for each connection, such as a token for a password."""
    resolved = dict(params)
    for key in ("user", "password"):
        if callable(resolved.get(key)):
            resolved[key] = resolved[key]()
    return resolved


def _hashable(params: Mapping[str, Any]) -> Hashable:
    """What tells one set of connection parameters from another."""
    items = []
    for key, value in sorted(params.items()):
        if isinstance(value, type):
            # Packages that watch cursors make a class of them for each wrapper, all alike.
            value = tuple((kind.__module__, kind.__qualname__) for kind in value.__mro__)
        try:
            hash(value)
        except TypeError:
            value = repr(value)
        items.append((key, value))
    return tuple(items)


def _after_fork_in_child() -> None:
    for wrapper in connections.all(initialized_only=True):
        if isinstance(wrapper, DatabaseWrapper):
            wrapper.forget_connection()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
uwsgi_seam.call_after_fork(_after_fork_in_child)

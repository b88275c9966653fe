"""The short way to a connection of the pool and back, past what Django does for a new one."""

from __future__ import annotations

import os
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import ref

from django.db.backends.base.base import RAN_DB_VERSION_CHECK, BaseDatabaseWrapper
from django.db.backends.postgresql import base as postgresql
from django.db.backends.signals import connection_created

from .parameters import copied

if TYPE_CHECKING:
    from psycopg import IsolationLevel

    from django_pooled.pool.pool import Pool

__all__ = ["QuickWrapper", "Way"]

HOOKS = (
    "check_settings",
    "get_connection_params",
    "get_new_connection",
    "init_connection_state",
    "set_autocommit",
    "_set_autocommit",
)
"""What Django's connect() calls; a backend built on this one may have put something into each."""

_long_way = BaseDatabaseWrapper.connect


class Way(NamedTuple):
    """Where a wrapper's connections came from last, and what that followed from."""

    settings: dict[str, Any]
    timezone_name: str
    process: int
    """Not every fork() calls hooks."""
    pool: Pool
    isolation_level: IsolationLevel
    sets_isolation_level: bool


class QuickWrapper(postgresql.DatabaseWrapper):
    """The part of the database wrapper that keeps a checkout cheap.

    Django's connect() works out the connection's parameters, sets autocommit and asks for the
    server's version. A connection of the pool has had all of that when it was opened, so a wrapper
    whose settings are as they were the last time only starts afresh, as connect() has it do.
    tests/integration/backend/test_connect.py fails when Django's does something else.
    """

    checked_out_from: Pool | None = None
    """The pool of the present connection."""

    closings: int = 0
    """How often it was closed, as at the end of a request."""

    _way: Way | None = None
    _hooks: tuple[object, ...] = ()

    def note_way(self, pool: Pool) -> None:
        """Remember where this wrapper's settings, as they are now, lead to."""
        self._way = Way(
            copied(self.settings_dict),
            self.timezone_name,
            os.getpid(),
            pool,
            self.isolation_level,
            "isolation_level" in self.settings_dict["OPTIONS"],
        )

    def connect(self) -> None:
        way = self._way
        if (
            way is None
            or way.process != os.getpid()
            or way.settings != self.settings_dict
            or way.timezone_name != self.timezone_name
            or way.pool.closed
            or not way.settings["AUTOCOMMIT"]
            # Django's runs callbacks then, which waited for a connection that was lost.
            or self.run_commit_hooks_on_set_autocommit_on
            or self.alias not in RAN_DB_VERSION_CHECK
            or not self._follows_django
        ):
            self.connect_anew()
            return
        self.in_atomic_block = self.needs_rollback = False
        self.closed_in_transaction = self.errors_occurred = False
        self.savepoint_ids, self.atomic_blocks, self.run_on_commit = [], [], []
        self.isolation_level = way.isolation_level
        connection = way.pool.checkout()
        connection.owner = ref(self)  # type: ignore[arg-type]
        self.connection, self.checked_out_from = connection, way.pool
        if way.sets_isolation_level:
            connection.isolation_level = way.isolation_level
        self.autocommit = True
        self.run_commit_hooks_on_set_autocommit_on = False
        if connection_created.receivers:
            self.tell_of_connection()

    def connect_anew(self) -> None:
        """Connect as Django does."""
        super().connect()

    def tell_of_connection(self) -> None:
        """Send Django's signal."""
        connection_created.send(sender=type(self), connection=self)

    def close_if_unusable_or_obsolete(self) -> None:
        self.closings += 1
        if self.connection is None:
            return
        # At both ends of a request: back to the pool, which looks for itself at its state.
        if self.checked_out_from is None:
            super().close_if_unusable_or_obsolete()
        else:
            self.give_back()

    def close(self) -> None:
        """As Django's; a cursor that was lent a connection before is lent none after it."""
        self.closings += 1
        super().close()

    def give_back(self) -> None:
        """Close, as Django does, past its questions where nobody has put more into it."""
        has_its_own = type(self).close is not QuickWrapper.close or "close" in vars(self)
        # Without a pool it is Django that forgets the closed connection.
        unpooled = self.connection is not None and self.checked_out_from is None
        if has_its_own or self.in_atomic_block or unpooled:
            closings = self.closings
            self.close()
            # The request goes on, and its cursors may be lent another connection.
            self.closings = closings
        else:
            self.run_on_commit = []
            self._close()  # type: ignore[attr-defined]

    def close_if_health_check_failed(self) -> None:
        # A pool checks its connections for itself.
        if self.checked_out_from is None and self.connection is not None:
            super().close_if_health_check_failed()

    @classmethod
    def remember_hooks(cls) -> None:
        """Take what this class has, now, for what a connection of the pool has had already."""
        cls._hooks = attrgetter(*HOOKS)(cls)

    @property
    def _follows_django(self) -> bool:
        """Whether nobody has put anything of his own on the long way.

        A subclass may have, or a test, or a package that watches: Sentry replaces connect().
        """
        # One by one, since this is asked at each checkout: to compare them as tuples and sets
        # takes three times as long. tests/integration/backend/test_connect.py goes through HOOKS.
        kind, own = type(self), vars(self)
        check, parameters, connection, state, autocommit, switch = self._hooks
        return (
            kind.check_settings is check
            and kind.get_connection_params is parameters
            and kind.get_new_connection is connection
            and kind.init_connection_state is state
            and kind.set_autocommit is autocommit
            and kind._set_autocommit is switch  # type: ignore[attr-defined]
            and BaseDatabaseWrapper.connect is _long_way
            and not (
                "check_settings" in own
                or "get_connection_params" in own
                or "get_new_connection" in own
                or "init_connection_state" in own
                or "set_autocommit" in own
                or "_set_autocommit" in own
            )
        )

"""Which pool a wrapper's settings lead to: remembered, found in this process, or made."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

from django_pooled.pool import registry
from django_pooled.pool.pool import Pool

from . import options as pool_options
from .django_private import CONFIGURE_CONNECTION, CONFIGURE_ROLE
from .parameters import FALLBACK_NAME, copied, fingerprint, resolved, server_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.db.backends.postgresql.base import DatabaseWrapper

    from django_pooled.pool.connection import PooledConnection

__all__ = ["PoolLookup"]


class PoolLookup:
    """Finds the pool of one wrapper, and remembers the last one.

    Django connects in two steps, from settings to parameters and from parameters to a connection,
    and a backend built on this one may change the parameters in between. So both steps are
    remembered: to compare takes a tenth of the time of working them out.
    """

    def __init__(self) -> None:
        # Each with its result, in one assignment, since threads may share a wrapper. The process
        # counts too: not every fork() calls hooks.
        self._settings: tuple[tuple[object, ...], dict[str, Any]] | None = None
        self._target: tuple[tuple[object, ...], Pool] | None = None

    def parameters(
        self, wrapper: DatabaseWrapper, work_out: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Return psycopg's parameters for the settings as they are now.

        Args:
            wrapper: Whose settings they are.
            work_out: Works them out.
        """
        settings = wrapper.settings_dict
        # A site with USE_TZ and one without may have the same name for their time zone.
        others = (wrapper.timezone_name, wrapper.timezone, os.getpid())
        last = self._settings
        if last is None or last[0] != (settings, *others):
            parameters = work_out()
            # Settings may be changed in place.
            last = self._settings = ((copied(settings), *others), parameters)
        return dict(last[1])

    def pool(self, wrapper: DatabaseWrapper, parameters: dict[str, Any]) -> Pool:
        """Return the open pool for these parameters; made, if there is none in this process."""
        role = wrapper.settings_dict["OPTIONS"].get("assume_role")
        target = (parameters, wrapper.timezone_name, role, os.getpid())
        last = self._target
        if last is None or last[1].closed or last[0] != target:
            key = (fingerprint(parameters), *target[1:3])
            pool = registry.pool_for(wrapper.alias, key, partial(_make_pool, wrapper, parameters))
            last = self._target = (target, pool)
        return last[1]

    def forget(self) -> None:
        """After fork(): the pool is the parent's."""
        self._settings = self._target = None


def _make_pool(wrapper: DatabaseWrapper, parameters: dict[str, Any]) -> Pool:
    settings = wrapper.settings_dict
    options = pool_options.parse(wrapper.alias, settings)
    if not options.application_name and FALLBACK_NAME not in settings["OPTIONS"]:
        parameters = {key: value for key, value in parameters.items() if key != FALLBACK_NAME}
    return Pool(
        wrapper.alias,
        options,
        parameters=partial(resolved, {**parameters, "autocommit": True}),
        configure=_with_wrapper(wrapper, CONFIGURE_CONNECTION),
        assume_role=_role_assumption(wrapper),
        credentials_change=any(callable(parameters.get(key)) for key in ("user", "password")),
        server=server_of(settings),
        # As psycopg does: without one, that of the environment or its own.
        connect_timeout=parameters.get("connect_timeout"),
    )


def _with_wrapper(wrapper: DatabaseWrapper, method: str) -> Callable[[PooledConnection], object]:
    # The pool outlives this wrapper and works in threads of its own, while composing SQL asks a
    # wrapper for a connection. So each connection gets a wrapper for the time of its
    # configuration, with the settings as they were when the pool was made.
    template, timezone_name = wrapper.copy(), wrapper.timezone_name

    def configure(connection: PooledConnection) -> None:
        stand_in = template.copy()
        stand_in.timezone_name = timezone_name
        stand_in.connection = connection
        getattr(stand_in, method)(connection)
        stand_in.connection = None

    return configure


def _role_assumption(wrapper: DatabaseWrapper) -> Callable[[PooledConnection], object] | None:
    """Return what gives a connection its role again, which a statement may have changed.

    A backend built on this one may set a role wherever it configures connections.
    """
    for method in (CONFIGURE_CONNECTION, CONFIGURE_ROLE):
        definer = next(kind for kind in type(wrapper).__mro__ if method in vars(kind))
        if not definer.__module__.startswith(("django.", "django_pooled.")):
            return _with_wrapper(wrapper, method)
    if wrapper.settings_dict["OPTIONS"].get("assume_role"):
        return _with_wrapper(wrapper, CONFIGURE_ROLE)
    return None

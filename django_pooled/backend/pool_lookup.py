"""Which pool a wrapper's settings lead to: remembered, found in this process, or made."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

# Its private names of psycopg_pool are asked for as a process starts, and not with its first pool.
from django_pooled.pool import psycopg_pool_private, registry  # noqa: F401
from django_pooled.pool.psycopg_private import parameter_of

from . import options as pool_options
from .credentials import are_fetched, resolved
from .django_private import CONFIGURE_CONNECTION, CONFIGURE_ROLE
from .parameters import FALLBACK_NAME, copied, fingerprint, server_of
from .site import this_site

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.db.backends.postgresql.base import DatabaseWrapper

    from django_pooled.pool.connection import PooledConnection
    from django_pooled.pool.pool import Pool

__all__ = ["PoolLookup"]


class PoolLookup:
    """Finds the pool of one wrapper, and remembers the last one.

    Django connects in two steps, from settings to parameters and from parameters to a connection,
    and a backend built on this one may change the parameters in between. So both steps are
    remembered, each with what it followed from: to compare takes a tenth of the time of working
    them out. The process counts too: not every fork() calls hooks.
    """

    def __init__(self) -> None:
        # Each in one assignment, since threads may share a wrapper.
        self.parameters: tuple[tuple[object, ...], dict[str, Any]] | None = None
        """Settings, name of the time zone, time zone, process; and psycopg's parameters for them.

        A site with USE_TZ and one without may have the same name for their time zone."""
        self.pool: tuple[tuple[object, ...], Pool] | None = None
        """Parameters, name of the time zone, role, process; and the pool for them."""

    def work_out(
        self, wrapper: DatabaseWrapper, work_out: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Have psycopg's parameters worked out for the settings as they are now."""
        # Settings may be changed in place.
        settings = copied(wrapper.settings_dict)
        key = (settings, wrapper.timezone_name, wrapper.timezone, os.getpid())
        parameters = work_out()
        self.parameters = (key, parameters)
        return dict(parameters)

    def find(self, wrapper: DatabaseWrapper, parameters: dict[str, Any]) -> Pool:
        """Return the open pool for these parameters; made, if there is none in this process."""
        role = wrapper.settings_dict["OPTIONS"].get("assume_role")
        key = (fingerprint(parameters), wrapper.timezone_name, role)
        pool = registry.pool_for(wrapper.alias, key, partial(_make_pool, wrapper, parameters))
        self.pool = ((parameters, *key[1:], os.getpid()), pool)
        return pool

    def forget(self) -> None:
        """After fork(): the pool is the parent's."""
        self.parameters = self.pool = None


def _make_pool(wrapper: DatabaseWrapper, parameters: dict[str, Any]) -> Pool:
    # Not above: a process that connects to nothing has no use for what a pool is made of.
    from django_pooled.pool.pool import Pool

    settings = wrapper.settings_dict
    options = pool_options.parse(wrapper.alias, settings)
    if not options.application_name and FALLBACK_NAME not in settings["OPTIONS"]:
        parameters = {key: value for key, value in parameters.items() if key != FALLBACK_NAME}
    return Pool(
        wrapper.alias,
        options,
        parameters=partial(resolved, {**parameters, "autocommit": True}, options.credentials),
        configure=_with_wrapper(wrapper, CONFIGURE_CONNECTION),
        assume_role=_role_assumption(wrapper),
        credentials_change=are_fetched(parameters, options.credentials),
        server=server_of(settings),
        # As psycopg does: without one, that of the environment or its own.
        connect_timeout=parameters.get("connect_timeout"),
        site=this_site(),
        target=parameter_of(parameters, "target_session_attrs"),
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

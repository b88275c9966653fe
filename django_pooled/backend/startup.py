"""Settings that cannot work are refused as a process starts, before its first request or task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db.utils import load_backend

from django_pooled.diagnostics.required_packages import missing_package, refusal
from django_pooled.integrations.celery import end_starting_worker
from django_pooled.integrations.servers import is_management_command

from .addresses import refuse_addresses
from .credentials import refuse_coroutines
from .databases import is_pooled, loads_as_ours
from .foreign_options import refuse_leftovers
from .misplaced_options import refuse_misplaced, refuse_unknown_parameters
from .options import parse
from .several_hosts import refuse_bad_hosts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from django_pooled.pool.options import PoolOptions

__all__ = ["refuse_bad_settings", "validate"]

_is_done = False


def refuse_bad_settings() -> None:
    """Refuse the settings of each database of this backend that cannot work; once per process.

    Called by the app as Django starts, and with the first wrapper: a model has Django make that
    of the default database, also where the app is not installed. No connection is opened.

    ``manage.py`` has the system checks for this if the app is installed: `check` lists all, other
    commands end with them, and `shell` stays usable.

    Raises:
        ImproperlyConfigured: The first that was found, or a package that is missing.
    """
    global _is_done
    if _is_done:
        return
    _is_done = True  # Before, since wrappers are made on the way.
    if is_management_command() and _has_checks():
        return
    try:
        if (missing := missing_package()) is not None:
            raise refusal(missing)
        for alias, entry in settings.DATABASES.items():
            if loads_as_ours(entry):
                validate(alias, entry)
    except ImproperlyConfigured as error:
        _is_done = False
        end_starting_worker(error)
        raise


def validate(alias: str, entry: Mapping[str, Any]) -> PoolOptions | None:
    """Validate an entry of ``settings.DATABASES`` that uses this backend, without connecting.

    Args:
        alias: The entry's key, for messages.
        entry: The entry, with Django's defaults filled in or not.

    Returns:
        The options of its pool; None if it has none.

    Raises:
        ImproperlyConfigured: Every connection would be refused, or an option has no effect.
    """
    refuse_addresses(alias, entry)
    if is_pooled(entry):
        options = parse(alias, entry)
    else:
        options = None
        refuse_leftovers(alias, entry)
        refuse_misplaced(alias, entry)
    if "isolation_level" in entry.get("OPTIONS", {}):
        # Here, since the system checks have to be imported without psycopg.
        from .parameters import isolation_level_of

        isolation_level_of(alias, entry)
    refuse_unknown_parameters(alias, _left_by_django(alias, entry))
    refuse_bad_hosts(alias, entry)
    refuse_coroutines(alias, entry)
    return options


def _left_by_django(alias: str, entry: Mapping[str, Any]) -> list[str]:
    """Return which of the OPTIONS Django hands over to psycopg, having taken out its own."""
    from django.db.backends.postgresql import base as postgresql

    kind = load_backend(entry["ENGINE"]).DatabaseWrapper
    definers = [each for each in kind.__mro__ if "get_connection_params" in vars(each)]
    if not all(each.__module__.startswith(("django.", "django_pooled.")) for each in definers):
        # It may have options of its own.
        return []
    options = dict(entry.get("OPTIONS", {}))
    address = dict.fromkeys(("USER", "PASSWORD", "HOST", "PORT"), "")
    stand_in: Any = postgresql.DatabaseWrapper(
        {"NAME": "any", "TIME_ZONE": None, "OPTIONS": options, **address}, alias
    )
    params = stand_in.get_connection_params()
    return [name for name in options if name in params]


def _has_checks() -> bool:
    return apps.apps_ready and apps.is_installed("django_pooled")

"""System checks for what can be seen in settings and in installed versions."""

from __future__ import annotations

import os
from inspect import isclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import psycopg_pool
from django.conf import settings
from django.core.checks import CheckMessage, Error
from django.core.checks import Warning as CheckWarning
from django.core.exceptions import ImproperlyConfigured, ViewDoesNotExist
from django.db.utils import load_backend
from django.urls import get_resolver
from django.utils.module_loading import import_string
from django.utils.version import get_version_tuple
from django.views.defaults import server_error

from . import stats_folder
from .conf import is_pooled, parse

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["TAG", "check_databases", "check_error_handler", "check_versions"]

# Not Tags.database: Django runs those only with --database, and nothing here connects.
TAG = "django_pooled"
"""For ``manage.py check --tag django_pooled``."""

MIDDLEWARE = "django_pooled.middleware.DatabaseUnavailableMiddleware"
HANDLER500 = "django_pooled.middleware.handler500"


def check_databases(**kwargs: object) -> list[CheckMessage]:
    """Check the entries of ``settings.DATABASES``: E001 and W001 to W004.

    Backends are imported, and no connection is opened.
    """
    messages: list[CheckMessage] = []
    for alias, entry in settings.DATABASES.items():
        kind = _kind_of(entry)
        if kind == "native":
            messages += _check_native(alias, entry)
        if kind != "pooled":
            continue
        messages += _check_health_checks(alias, entry)
        try:
            stats_dir = parse(alias, entry).stats_dir
        except ImproperlyConfigured as error:
            hint = "No connection to this database can be had before this is mended."
            messages.append(Error(str(error), hint=hint, id="django_pooled.E001"))
            continue
        if isinstance(stats_dir, (str, os.PathLike)):
            messages += _check_stats_dir(alias, os.fspath(stats_dir))
    return messages


def check_error_handler(**kwargs: object) -> list[CheckMessage]:
    """Check that errors which no middleware can see are answered too: W005.

    An error handler of the project's own is left in peace: whether it calls
    ``unavailable_response()`` can't be seen from outside.
    """
    root = getattr(settings, "ROOT_URLCONF", None)
    if root is None or not _has_middleware():
        return []
    try:
        handler = get_resolver().resolve_error_handler(500)
    except (ImportError, ViewDoesNotExist):
        # Django's own checks report it.
        return []
    if handler is not server_error:
        return []
    return [
        CheckWarning(
            f"{MIDDLEWARE} is installed, and {root} has no handler500: a "
            f"database that is away while another middleware needs it is answered 500.",
            hint=f"Add handler500 = {HANDLER500!r} to {root}.",
            id="django_pooled.W005",
        )
    ]


def check_versions(**kwargs: object) -> list[CheckMessage]:
    """Check versions that pip only warns about when another package asked for others: E002, E003.

    psycopg2 needs no check: without psycopg 3 this module can't be imported.
    """
    messages: list[CheckMessage] = []
    if get_version_tuple(psycopg.__version__) < (3, 2, 4):
        messages.append(
            Error(
                f"psycopg {psycopg.__version__} is too old for django_pooled.",
                hint="Install psycopg 3.2.4 or later.",
                id="django_pooled.E002",
            )
        )
    if get_version_tuple(psycopg_pool.__version__)[:2] != (3, 3):
        messages.append(
            Error(
                f"psycopg_pool {psycopg_pool.__version__} is not the one that django_pooled "
                f"builds on; its internals differ between minor versions.",
                hint="Install psycopg_pool 3.3.",
                id="django_pooled.E003",
            )
        )
    return messages


def _kind_of(entry: Mapping[str, Any]) -> str:
    """Say whose backend an entry uses: "pooled", "native" (Django's PostgreSQL) or "other"."""
    if not entry.get("ENGINE"):
        return "other"
    try:
        if is_pooled(entry):
            return "pooled"
        from django.db.backends.postgresql.base import DatabaseWrapper

        wrapper = load_backend(entry["ENGINE"]).DatabaseWrapper
    except (ImportError, ImproperlyConfigured):
        # Django refuses it with a message of its own as soon as it is used.
        return "other"
    return "native" if isclass(wrapper) and issubclass(wrapper, DatabaseWrapper) else "other"


def _check_native(alias: str, entry: Mapping[str, Any]) -> list[CheckMessage]:
    if not entry.get("OPTIONS", {}).get("pool"):
        return []
    return [
        CheckWarning(
            f"DATABASES[{alias!r}] has OPTIONS['pool'], but its ENGINE is {entry['ENGINE']!r}: "
            f"it uses Django's own pool.",
            hint="Set its ENGINE to 'django_pooled', or silence this check.",
            id="django_pooled.W002",
        )
    ]


def _check_health_checks(alias: str, entry: Mapping[str, Any]) -> list[CheckMessage]:
    if not entry.get("CONN_HEALTH_CHECKS"):
        return []
    return [
        CheckWarning(
            f"DATABASES[{alias!r}]['CONN_HEALTH_CHECKS'] has no effect: every checkout looks at "
            f"the connection.",
            hint="Remove it. OPTIONS['pool']['check_after'] says when a checkout also asks the "
            "server.",
            id="django_pooled.W001",
        )
    ]


def _check_stats_dir(alias: str, folder: str) -> list[CheckMessage]:
    place = f"DATABASES[{alias!r}]['OPTIONS']['pool']['stats_dir']"
    messages: list[CheckMessage] = []
    if not Path(folder).is_absolute():
        messages.append(
            CheckWarning(
                f"{place} is the relative path {folder!r}: a worker and poolstats started in "
                f"different folders don't find each other.",
                hint="Make it absolute, for example with BASE_DIR.",
                id="django_pooled.W003",
            )
        )
    if hasattr(os, "geteuid"):
        private = stats_folder.candidates(folder, os.geteuid())[0]
        # The longest process id that Linux gives has seven digits.
        length = len(os.fsencode(private / stats_folder.socket_name(4_194_304)))
        if length > stats_folder.SUN_PATH_LIMIT:
            messages.append(
                CheckWarning(
                    f"{place} is too long for a Unix socket: with the file's name it makes "
                    f"{length} bytes of {stats_folder.SUN_PATH_LIMIT}, so poolstats will see "
                    f"no process of this site.",
                    hint="Choose a folder with a shorter path.",
                    id="django_pooled.W004",
                )
            )
    return messages


def _has_middleware() -> bool:
    from .middleware import DatabaseUnavailableMiddleware

    for path in settings.MIDDLEWARE:
        try:
            candidate = import_string(path)
        except ImportError:
            # Django fails on it at start-up.
            continue
        if isclass(candidate) and issubclass(candidate, DatabaseUnavailableMiddleware):
            return True
    return False

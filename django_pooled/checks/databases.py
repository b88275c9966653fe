"""The entries of ``settings.DATABASES``: E001, W001 to W004, W016, W017, W027 and W028."""

from __future__ import annotations

import os
from inspect import isclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.core.checks import CheckMessage, Error
from django.core.checks import Warning as CheckWarning
from django.core.exceptions import ImproperlyConfigured
from django.db.utils import load_backend

from django_pooled.backend.databases import is_ours, is_pooled
from django_pooled.backend.options import parse
from django_pooled.backend.several_hosts import hosts_of
from django_pooled.backend.startup import validate
from django_pooled.diagnostics.redaction import shown
from django_pooled.stats import socket_folder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from django_pooled.pool.options import PoolOptions

__all__ = ["check_databases", "pooled", "refused"]

# What a number means for psycopg, and what it meant for psycopg2:
# https://www.psycopg.org/docs/extensions.html#isolation-level-constants
_LEVELS = {
    1: ("READ UNCOMMITTED", "READ COMMITTED"),
    2: ("READ COMMITTED", "REPEATABLE READ"),
    3: ("REPEATABLE READ", "SERIALIZABLE"),
    4: ("SERIALIZABLE", "READ UNCOMMITTED"),
}
_OTHER_POOLS = ("dj_db_conn_pool.", "django_db_geventpool.")


def check_databases(**kwargs: object) -> list[CheckMessage]:
    """Check the entries of ``settings.DATABASES``: E001, W001 to W004, W016, W017, W027 and W028.

    Backends are imported, and no connection is opened.
    """
    messages: list[CheckMessage] = []
    for alias, entry in settings.DATABASES.items():
        kind = _kind_of(entry)
        if kind == "native":
            messages += _check_native(alias, entry)
        elif kind == "other":
            messages += _check_other_pool(alias, entry)
        else:
            messages += _check_ours(alias, entry, has_pool=kind == "pooled")
    return messages


def pooled(databases: Mapping[str, Any] | None = None) -> dict[str, PoolOptions]:
    """Return the pool's options of each database that has a pool of ours, and options in order."""
    found = {}
    for alias, entry in (databases or settings.DATABASES).items():
        if _kind_of(entry) == "pooled":
            try:
                found[alias] = parse(alias, entry)
            except ImproperlyConfigured:
                # E001 says so.
                continue
    return found


def refused(error: ImproperlyConfigured) -> CheckMessage:
    """Make a message of the refusal of a database's options."""
    hint = "No connection to this database is possible until this is corrected."
    return Error(str(error), hint=hint, id="django_pooled.E001")


def _kind_of(entry: Mapping[str, Any]) -> str:
    """Say whose backend an entry uses.

    "pooled" or "unpooled", which are ours; "native" (Django's PostgreSQL) or "other".
    """
    if not entry.get("ENGINE"):
        return "other"
    try:
        if is_ours(entry):
            return "pooled" if is_pooled(entry) else "unpooled"
        from django.db.backends.postgresql.base import DatabaseWrapper

        wrapper = load_backend(entry["ENGINE"]).DatabaseWrapper
    except (ImportError, ImproperlyConfigured):
        # Django refuses it with a message of its own as soon as it is used.
        return "other"
    return "native" if isclass(wrapper) and issubclass(wrapper, DatabaseWrapper) else "other"


def _check_ours(alias: str, entry: Mapping[str, Any], *, has_pool: bool) -> list[CheckMessage]:
    messages = _check_isolation_level(alias, entry)
    if has_pool:
        messages += _check_health_checks(alias, entry)
    try:
        options = validate(alias, entry)
    except ImproperlyConfigured as error:
        return [*messages, refused(error)]
    if options is not None and isinstance(options.stats_dir, (str, os.PathLike)):
        messages += _check_stats_dir(alias, os.fspath(options.stats_dir))
    if options is not None and options.read_only is None:
        messages += _check_hosts(alias, entry)
    if options is not None:
        messages += _check_credentials(alias, entry, options)
    return messages


def _check_credentials(
    alias: str, entry: Mapping[str, Any], options: PoolOptions
) -> list[CheckMessage]:
    parameters = entry.get("OPTIONS", {})
    given = [entry.get(key) for key in ("USER", "PASSWORD")]
    given += [parameters.get(key) for key in ("user", "password")]
    if not options.credentials_lifetime or any(map(callable, [*given, options.credentials])):
        return []
    return [
        CheckWarning(
            f"DATABASES[{alias!r}]['OPTIONS']['pool']['credentials_lifetime'] has no effect: no "
            f"credentials are fetched.",
            hint="Give a callable as PASSWORD or OPTIONS['pool']['credentials'], not what it "
            "returns; or remove it.",
            id="django_pooled.W028",
        )
    ]


def _check_hosts(alias: str, entry: Mapping[str, Any]) -> list[CheckMessage]:
    target = entry.get("OPTIONS", {}).get("target_session_attrs")
    hosts = hosts_of(entry)
    is_mirror = bool(entry.get("TEST", {}).get("MIRROR"))
    if len(hosts) < 2 or target or os.environ.get("PGTARGETSESSIONATTRS") or is_mirror:
        return []
    return [
        CheckWarning(
            f"DATABASES[{alias!r}] lists {len(hosts)} hosts and does not say which of them are "
            f"meant: any that answers is used, a standby too, where writes fail (25006).",
            hint="Set OPTIONS['target_session_attrs'] to 'read-write'; to 'any' where each host "
            "can write, as with several PgBouncers; or to 'standby' or 'prefer-standby' for "
            "replicas.",
            id="django_pooled.W027",
        )
    ]


def _check_isolation_level(alias: str, entry: Mapping[str, Any]) -> list[CheckMessage]:
    level = entry.get("OPTIONS", {}).get("isolation_level")
    # Not isinstance(): psycopg's own levels are numbers, too.
    if type(level) is not int or level not in _LEVELS:
        return []
    here, there = _LEVELS[level]
    return [
        CheckWarning(
            f"DATABASES[{alias!r}]['OPTIONS']['isolation_level'] is {level}, which is {here} for "
            f"psycopg; for psycopg2 it was {there}.",
            hint=f"Write psycopg.IsolationLevel.{here.replace(' ', '_')}, or the other one if that "
            f"is meant.",
            id="django_pooled.W016",
        )
    ]


def _check_other_pool(alias: str, entry: Mapping[str, Any]) -> list[CheckMessage]:
    engine = str(entry.get("ENGINE", ""))
    if not engine.startswith(_OTHER_POOLS):
        return []
    return [
        CheckWarning(
            f"DATABASES[{alias!r}]['ENGINE'] is {engine!r}: it uses that package's pool.",
            hint="Set it to 'django_pooled', or silence this check. docs/migration.md says what "
            "becomes of its options.",
            id="django_pooled.W017",
        )
    ]


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
                f"{place} is the relative path {shown(folder)}: a worker and poolstats started in "
                f"different folders don't find each other.",
                hint="Make it absolute, for example with BASE_DIR.",
                id="django_pooled.W003",
            )
        )
    if socket_folder.available():
        private = socket_folder.candidates(folder, os.geteuid())[0]
        # The longest process id that Linux gives has seven digits.
        length = len(os.fsencode(private / socket_folder.socket_name(4_194_304)))
        if length > socket_folder.SUN_PATH_LIMIT:
            messages.append(
                CheckWarning(
                    f"{place} is too long for a Unix socket: with the file's name it makes "
                    f"{length} bytes of {socket_folder.SUN_PATH_LIMIT}, so poolstats will see "
                    f"no process of this site.",
                    hint="Choose a folder with a shorter path.",
                    id="django_pooled.W004",
                )
            )
    return messages

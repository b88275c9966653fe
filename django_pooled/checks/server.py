"""What has to be asked of the server, over one connection: W009 to W015, W018 to W020, W025."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.core.checks import CheckMessage, Info
from django.core.checks import Warning as CheckWarning
from django.core.exceptions import ImproperlyConfigured
from django.db import connections

from django_pooled.backend.databases import is_pooled
from django_pooled.backend.options import parse
from django_pooled.backend.parameters import server_of
from django_pooled.poolstats.server.probe import NoAnswer, Probe

from .capacity import Neighbour, check_capacity, limits_of
from .databases import pooled, refused
from .declared_processes import declared
from .idle_timeouts import check_timeouts
from .live_processes import live_processes
from .pooler import check_pooler
from .read_only import check_read_only
from .row_security import check_row_security
from .server_facts import ask_server

if TYPE_CHECKING:
    from collections.abc import Mapping

    from django_pooled.backend.wrapper import DatabaseWrapper
    from django_pooled.pool.options import PoolOptions

    from .server_facts import ServerFacts

__all__ = ["check_app", "check_server"]

TIMEOUT = 3.0
"""Seconds for one database, connecting included."""


def check_app() -> list[CheckMessage]:
    """Say what a site lacks that uses the backend alone."""
    if apps.is_installed("django_pooled"):
        return []
    return [
        Info(
            "'django_pooled' is not in INSTALLED_APPS: there is no manage.py poolstats, and "
            "no system check of settings.",
            hint="Add it. Pooling and retry_transaction work without.",
            id="django_pooled.I002",
        )
    ]


def check_server(wrapper: DatabaseWrapper) -> list[CheckMessage]:
    """Check one database's server against the pool's options.

    One connection is opened, outside of the pool, and closed.
    """
    alias, entry = wrapper.alias, wrapper.settings_dict
    if not is_pooled(entry):
        return []
    try:
        options = parse(alias, entry)
    except ImproperlyConfigured as error:
        # With the app, check_databases says the same.
        return [] if apps.is_installed("django_pooled") else [refused(error)]
    try:
        facts = _ask(wrapper)
    except NoAnswer as error:
        return [_no_answer(alias, str(error))]
    messages = [*check_read_only(alias, entry, options, facts), *_reticence(alias, facts)]
    workers = declared(os.environ)
    live = live_processes(alias, server_of(entry), options, facts.processes)
    if facts.behind_pooler:
        pooler = check_pooler(alias, entry, options, facts.pooler, workers, live)
        return [*messages, *pooler]
    limits = limits_of(facts, _neighbours(alias, entry, options))
    return [
        *messages,
        *check_capacity(alias, limits, workers, live),
        *check_timeouts(alias, options, facts.idle_session_timeout),
        *check_row_security(alias, options, facts.tables_by_session),
    ]


def _ask(wrapper: DatabaseWrapper) -> ServerFacts:
    probe = Probe(wrapper, ask_server, "django check")
    probe.start(TIMEOUT)
    try:
        return probe.wait(TIMEOUT)
    finally:
        probe.close()


def _no_answer(alias: str, why: str) -> CheckMessage:
    return CheckWarning(
        f"The server of DATABASES[{alias!r}] could not be checked: {why}",
        hint="Check again when it is up: the settings were not compared with its limits.",
        id="django_pooled.W009",
    )


def _reticence(alias: str, facts: ServerFacts) -> list[CheckMessage]:
    """Say what is missing where the answer to a COMMIT is lost."""
    if not facts.refused:
        return []
    return [
        CheckWarning(
            f"The server of DATABASES[{alias!r}] does not tell the role {facts.role!r}: "
            f"{', '.join(facts.refused)}. Where the answer to a COMMIT is lost, "
            f"retry_transaction raises AmbiguousCommit more often.",
            hint="Pass commit_check='token', which does without, or grant EXECUTE on these "
            "functions. docs/retry.md says what follows from which.",
            id="django_pooled.W020",
        )
    ]


def _neighbours(alias: str, entry: Mapping[str, Any], options: PoolOptions) -> list[Neighbour]:
    """Return the pooled databases whose settings name the same server."""
    found = [Neighbour(alias, options, same_role=True, same_database=True)]
    for other, its in pooled(connections.settings).items():
        settings = connections.settings[other]
        if other != alias and _address(settings) == _address(entry):
            same = [settings.get(key) == entry.get(key) for key in ("USER", "NAME")]
            found.append(Neighbour(other, its, *same))
    return found


def _address(entry: Mapping[str, Any]) -> tuple[object, ...]:
    service = entry.get("OPTIONS", {}).get("service")
    return entry.get("HOST"), str(entry.get("PORT") or 5432), service

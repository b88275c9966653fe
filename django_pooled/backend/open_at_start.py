"""Opens pools as a worker starts, where their option says so; see the option ``open_at_start``."""

from __future__ import annotations

import logging
from importlib import import_module
from time import sleep
from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.conf import settings
from django.db import connections

from django_pooled.activity import start_thread
from django_pooled.diagnostics.log_fields import event_fields
from django_pooled.diagnostics.redaction import told
from django_pooled.integrations import celery, uwsgi
from django_pooled.integrations.servers import is_command_of_django, loads_to_serve
from django_pooled.pool import backoff

from .databases import loads_as_ours

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["arrange", "open_at_start"]

logger = logging.getLogger("django_pooled.pool")

STEP = 0.05
"""Seconds between two glances at Django, which is being set up."""

_PARTS = (
    "django_pooled.pool.pool",
    "django_pooled.stats.answering_socket",
    "django_pooled.stats.snapshot",
)
"""What a pool is made of, and what reports it; with all that these import."""

_is_arranged = False
"""Read and set without a lock: where two threads make their first wrappers at once, without the
app, both may arrange it, and whoever opens a pool second finds it open."""


def arrange() -> None:
    """Have the pools opened in each process that will serve, or run tasks; once per process.

    And what they are made of imported, but for a command of Django's, which may need none.
    Called as Django is set up. Nothing is opened in a process that forks such processes, nor for a
    management command or any other program. No connection is waited for.
    """
    global _is_arranged
    if _is_arranged:
        return
    _is_arranged = True
    if any(map(loads_as_ours, settings.DATABASES.values())) and not is_command_of_django():
        # Before workers are forked, and not in the first request of each. And in this thread: a
        # process that is forked while another one imports waits for that import for good.
        for part in _PARTS:
            import_module(part)
        backoff.prepare()
    if not any(map(_is_opened, settings.DATABASES.values())):
        return
    celery.call_in_workers(open_at_start)
    if loads_to_serve():
        open_at_start()
    elif uwsgi.is_loaded():
        uwsgi.call_after_fork(open_at_start)


def open_at_start() -> None:
    """Open the pools of this process whose option ``open_at_start`` is on, in the background.

    For workers of servers that are not recognised. It returns at once, and is of no effect on pools
    that are open already.
    """
    start_thread(_open, "opens-at-start")


def _open() -> None:
    # Other apps, in their turn, may yet change how connections are configured.
    while not apps.ready:
        sleep(STEP)
    for alias, entry in connections.settings.items():
        if not (_is_opened(entry) and loads_as_ours(entry)):
            continue
        try:
            connections[alias].pool  # type: ignore[attr-defined]  # noqa: B018
        except Exception as error:
            # The first query meets it too.
            logger.warning(
                "pool %r: was not opened at the start: %s",
                *(alias, told(error)),
                extra=event_fields("pool_not_opened", alias=alias, error=error),
            )


def _is_opened(entry: Mapping[str, Any]) -> bool:
    pool = entry.get("OPTIONS", {}).get("pool")
    return isinstance(pool, dict) and pool.get("open_at_start") is True

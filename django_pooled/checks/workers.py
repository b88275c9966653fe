"""Threads of the processes that will run the site: W006 and I001."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from django.core.checks import CheckMessage, Info
from django.core.checks import Warning as CheckWarning

from django_pooled.integrations import uwsgi

from . import uwsgi_options
from .databases import pooled
from .declared_processes import declared

if TYPE_CHECKING:
    from django_pooled.pool.options import PoolOptions

__all__ = ["check_workers"]


def check_workers(**kwargs: object) -> list[CheckMessage]:
    """Check what the environment and settings say of workers, as far as they say anything."""
    databases = pooled()
    if not databases:
        return []
    return [*_check_uwsgi(), *_check_threads(databases)]


def _check_uwsgi() -> list[CheckMessage]:
    asleep = uwsgi.threads_sleep()
    if not asleep and not uwsgi_options.has_threads_by_itself():
        options = uwsgi_options.read(os.environ)
        asleep = options is not None and options.whole and not options.enables_threads
    if not asleep:
        return []
    return [
        CheckWarning(
            "uWSGI runs without threads: between requests no idle connection is closed, none is "
            "replaced, and poolstats gets no answer.",
            hint="Set enable-threads = true. From uWSGI 2.0.31 on it is the default.",
            id="django_pooled.W006",
        )
    ]


def _check_threads(databases: dict[str, PoolOptions]) -> list[CheckMessage]:
    return [
        Info(
            f"{workers.source}: each process has {workers.threads} threads, and the pool of "
            f"DATABASES[{alias!r}] at most {options.max_size} connections. Threads that need one "
            f"when all are in use wait for up to {options.timeout:g} s.",
            hint="Fine where requests spend most of their time elsewhere; else raise max_size.",
            id="django_pooled.I001",
        )
        for workers in declared(os.environ)
        for alias, options in databases.items()
        # In transaction mode a small pool is meant to serve many threads.
        if options.pool_mode == "session" and (workers.threads or 0) > options.max_size
    ]

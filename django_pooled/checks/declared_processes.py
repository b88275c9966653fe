"""How many processes and threads a site is told to run, where that can be known in advance.

Not from a configuration file that is a program, not from a command line, and not from what an
orchestrator starts: those are known once the processes run, by `live_processes`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from . import uwsgi_options
from .celery_worker import configured

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from django_pooled.pool.options import PoolOptions

__all__ = ["Workers", "declared"]

_ONE_PROCESS = ("threads", "gevent", "eventlet", "solo")
"""Celery's pools in which all tasks share a process."""


class Workers(NamedTuple):
    """Processes that something will start on one host or in one container."""

    source: str
    """The setting or variable that says so."""
    processes: int
    threads: int | None
    """Of each process, that run the site's code; None where nothing says it."""

    def connections(self, options: PoolOptions) -> int:
        """Return how many connections to a database each process may open."""
        if self.threads is None:
            return options.max_size
        # None is opened that no thread waits for, beyond min_size.
        return max(options.min_size, min(options.max_size, self.threads))


def declared(environment: Mapping[str, str]) -> list[Workers]:
    """Return what the environment and Celery's settings say."""
    return [*_gunicorn(environment), *_uwsgi(environment), *_celery()]


def _gunicorn(environment: Mapping[str, str]) -> Iterator[Workers]:
    # uvicorn and others read WEB_CONCURRENCY as well. Arguments go before it.
    # https://docs.gunicorn.org/en/stable/settings.html#workers
    arguments = environment.get("GUNICORN_CMD_ARGS", "")
    workers = _last(r"(?:-w\s*|--workers[=\s]\s*)(\d+)", arguments)
    threads = _last(r"--threads[=\s]\s*(\d+)", arguments)
    source = "GUNICORN_CMD_ARGS"
    concurrency = environment.get("WEB_CONCURRENCY", "")
    if workers is None and concurrency.isdecimal():
        workers, source = int(concurrency), "WEB_CONCURRENCY"
    if workers is not None or threads is not None:
        yield Workers(source, workers or 1, threads)


def _uwsgi(environment: Mapping[str, str]) -> Iterator[Workers]:
    if options := uwsgi_options.read(environment):
        yield Workers("uWSGI's options", options.processes, options.threads)


def _celery() -> Iterator[Workers]:
    # Unless told, Celery takes as many as there are processors wherever it runs.
    concurrency = configured("worker_concurrency")
    if isinstance(concurrency, int) and concurrency > 0:
        in_one = str(configured("worker_pool")).endswith(_ONE_PROCESS)
        processes, threads = (1, concurrency) if in_one else (concurrency, 1)
        yield Workers("CELERY_WORKER_CONCURRENCY", processes, threads)


def _last(pattern: str, arguments: str) -> int | None:
    found = re.findall(rf"(?:^|\s){pattern}(?!\S)", arguments)
    return int(found[-1]) if found else None

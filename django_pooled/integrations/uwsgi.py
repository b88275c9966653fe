"""uWSGI: its forks call no hooks of Python's, and its threads may sleep between requests.

https://uwsgi-docs.readthedocs.io/en/latest/ThingsToKnow.html
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

from django_pooled.diagnostics.log_fields import event_fields

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "call_after_fork",
    "is_loaded",
    "is_parent",
    "threads_sleep",
    "warn_without_threads",
]

logger = logging.getLogger("django_pooled.pool")


def is_loaded() -> bool:
    """Tell whether this process is one of uWSGI's."""
    return "uwsgi" in sys.modules


def is_parent() -> bool:
    """Tell whether it forks the workers, and has loaded the site for them."""
    uwsgi = sys.modules.get("uwsgi")
    return uwsgi is not None and uwsgi.worker_id() == 0


def call_after_fork(hook: Callable[[], object]) -> None:
    """Have uWSGI call *hook* in each worker that it forks; under other servers, do nothing.

    uWSGI runs the hooks of os.register_at_fork() only with ``py-call-uwsgi-fork-hooks``.
    """
    uwsgi = sys.modules.get("uwsgi")
    if uwsgi is None:
        return
    try:
        from uwsgidecorators import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
            postfork,
        )
    except Exception:
        # Not installed, or refused because uWSGI runs without a master process.
        before = getattr(uwsgi, "post_fork_hook", None)

        def both() -> None:
            if before is not None:
                before()
            hook()

        uwsgi.post_fork_hook = both  # type: ignore[attr-defined]
    else:
        postfork(hook)


def threads_sleep() -> bool:
    """Tell whether threads run only during a request, as in a uWSGI without enable-threads."""
    uwsgi = sys.modules.get("uwsgi")
    return uwsgi is not None and not getattr(uwsgi, "has_threads", True)


def warn_without_threads() -> None:
    """Log what does not work where threads run only during a request.

    Checkouts do work: a thread that waits for a connection lets others run. Work due between
    requests is done during the next one.
    """
    if threads_sleep():
        logger.warning(
            "uWSGI runs without enable-threads: between requests no idle connection is closed, "
            "none is replaced, and poolstats gets no answer. Set enable-threads = true.",
            extra=event_fields("uwsgi_without_threads"),
        )

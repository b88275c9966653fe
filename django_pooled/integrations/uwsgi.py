"""What is different under uWSGI: it forks without a word to Python, and may leave threads asleep.

https://uwsgi-docs.readthedocs.io/en/latest/ThingsToKnow.html
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

from django_pooled.diagnostics.log_fields import facts

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["call_after_fork", "threads_sleep", "warn_without_threads"]

logger = logging.getLogger("django_pooled.pool")


def call_after_fork(hook: Callable[[], object]) -> None:
    """Have uWSGI call *hook* in each worker that it forks from now on; nothing elsewhere.

    It runs what os.register_at_fork() took only with ``py-call-uwsgi-fork-hooks``.
    """
    uwsgi = sys.modules.get("uwsgi")
    if uwsgi is None:
        return
    try:
        from uwsgidecorators import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
            postfork,
        )
    except Exception:
        # Not installed, or refused since uWSGI runs without a master process.
        before = getattr(uwsgi, "post_fork_hook", None)

        def both() -> None:
            if before is not None:
                before()
            hook()

        uwsgi.post_fork_hook = both  # type: ignore[attr-defined]
    else:
        postfork(hook)


def threads_sleep() -> bool:
    """Tell whether this is a process of a uWSGI in which threads run only while a request does."""
    uwsgi = sys.modules.get("uwsgi")
    return uwsgi is not None and not getattr(uwsgi, "has_threads", True)


def warn_without_threads() -> None:
    """Say in the log what does not work where threads run only while a request does.

    Checkouts do: a thread that waits for a connection lets others run. What should happen
    between requests happens during the next one.
    """
    if threads_sleep():
        logger.warning(
            "uWSGI runs without enable-threads: between requests no idle connection is closed, "
            "none is replaced, and poolstats gets no answer. Set enable-threads = true.",
            extra=facts("uwsgi_without_threads"),
        )

"""Celery beside a pool: W007 and W008."""

from __future__ import annotations

import sys
from inspect import getattr_static, isfunction, unwrap
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.core.checks import CheckMessage
from django.core.checks import Warning as CheckWarning

from django_pooled.integrations.celery import FIXUP

from .databases import pooled

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["check_celery", "configured"]

_REUSE = "CELERY_DB_REUSE_MAX"


def check_celery(**kwargs: object) -> list[CheckMessage]:
    """Check what Celery does with connections between tasks.

    Its fixup closes a pool that is in ``OPTIONS["pool"]`` around each task, from 5.6 on;
    ``integrations/celery.py`` makes that a call without effect. W007 says that the call comes
    from a place that it does not know.
    """
    modes = {options.pool_mode for options in pooled().values()}
    if not modes:
        return []
    messages: list[CheckMessage] = [
        CheckWarning(
            f"{place}() closes pools, and django_pooled does not know that it is Celery's: each "
            f"task may cost new sessions.",
            hint="Leave Celery's own fixup in place, or call close_pool() only where a process "
            "starts or ends.",
            id="django_pooled.W007",
        )
        for place in _unknown_closers()
    ]
    # In transaction mode there is nothing to hold between tasks.
    if "session" in modes and configured(_REUSE):
        messages.append(
            CheckWarning(
                f"{_REUSE} makes Celery's workers hold connections between tasks: other threads "
                f"of a worker wait for them, and a task may meet one that broke meanwhile.",
                hint="Remove it: the pool keeps sessions open from task to task.",
                id="django_pooled.W008",
            )
        )
    return messages


def configured(name: str) -> object:
    """Return a setting of Celery: of its app, where one is loaded, else as in Django's settings."""
    app = _app()
    if app is not None:
        return _conf_of(app).get(name)
    return getattr(settings, f"CELERY_{name.upper().removeprefix('CELERY_')}", None)


def _app() -> Any:
    return getattr(sys.modules.get("celery._state"), "default_app", None)


def _conf_of(app: Any) -> Any:
    try:
        # Read on first use, from the project's own module.
        app.conf.get(_REUSE)
    except Exception:
        # The worker ends with the same error, and says more about it.
        return {}
    return app.conf


def _unknown_closers() -> Iterator[str]:
    app = _app()
    if app is None or not _conf_of(app):
        return
    for fixup in app._fixups:
        kind = type(getattr(fixup, "worker_fixup", None))
        for name in dir(kind):
            function = getattr_static(kind, name)
            if not isfunction(function):
                continue
            function = unwrap(function)
            module = function.__globals__["__name__"]
            if "close_pool" in function.__code__.co_names and module != FIXUP:
                yield f"{module}.{function.__qualname__}"

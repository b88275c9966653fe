"""Views for the probes of an orchestrator or a load balancer: ready to serve, and alive."""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING

from django.contrib.auth.decorators import login_not_required
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.http import JsonResponse
from django.utils.log import log_response
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from .backend.non_atomic import never_atomic
from .backend.wrapper import DatabaseWrapper
from .diagnostics.log_fields import LoggerWithFields, event_fields
from .diagnostics.redaction import one_line
from .pool.lane_context import lane
from .poolstats.sources import pooled_aliases

if TYPE_CHECKING:
    from collections.abc import Iterable

    from django.http import HttpRequest

    from .pool.pool import Pool

__all__ = ["liveness", "readiness"]

logger = logging.getLogger("django_pooled.pool")


@lane("probe")
@never_atomic
@login_not_required
@require_safe
@never_cache
def readiness(
    request: HttpRequest, using: str | Iterable[str] | None = None, timeout: float = 0.8
) -> JsonResponse:
    """Answer 200 where the pools of this process can serve, and 503 where one cannot.

    Both arguments come from the third argument of ``path()``.

    Args:
        request: GET or HEAD.
        using: The database, or several, whose pools count; by default all that have one.
        timeout: Longest that it takes, in seconds, whatever the server does. Kubernetes waits
            for one second, unless it is told otherwise.

    Raises:
        ImproperlyConfigured: A database has no pool, or none has.
    """
    deadline = monotonic() + timeout
    checks = {alias: pool.check_readiness(timeout) for alias, pool in _pools(using).items()}
    found = {alias: check.result(deadline - monotonic()) for alias, check in checks.items()}
    states = {alias: state.value for alias, state in found.items()}
    ready = all(state.serves for state in found.values())
    response = JsonResponse(
        {
            "status": "ready" if ready else "not ready",
            "databases": states,
        },
        status=200 if ready else 503,
    )
    if not ready:
        # The pool has said so once. Django would log each as an error, and mail it to the admins.
        log_response(
            "%s was answered 503",
            one_line(request.path),
            response=response,
            request=request,
            logger=LoggerWithFields(logger, event_fields("probe_answered_503", states=states)),
            level="debug",
        )
    return response


@lane("probe")
@never_atomic
@login_not_required
@require_safe
@never_cache
def liveness(request: HttpRequest) -> JsonResponse:
    """Answer 200, without a look at any database or pool: this process takes requests.

    Args:
        request: GET or HEAD.
    """
    return JsonResponse({"status": "alive"})


def _pools(using: str | Iterable[str] | None) -> dict[str, Pool]:
    chosen = [using] if isinstance(using, str) else using
    found = {}
    # Of all entries those of this engine alone are loaded: another's driver may be missing here.
    for alias in pooled_aliases() if chosen is None else chosen:
        wrapper = connections[alias]
        pool = wrapper.pool if isinstance(wrapper, DatabaseWrapper) else None
        if pool is not None:
            found[alias] = pool
        elif chosen is not None:
            raise ImproperlyConfigured(
                f"readiness: the database {alias!r} has no pool of django_pooled"
            )
    if not found:
        raise ImproperlyConfigured("readiness: no database has a pool of django_pooled")
    return found

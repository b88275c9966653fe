"""The page that Prometheus scrapes: whichever process is asked answers for its siblings too."""

from __future__ import annotations

import atexit
from typing import TYPE_CHECKING

from django.http import HttpResponse
from django.views.decorators.http import require_safe

from django_pooled.backend.non_atomic import never_atomic
from django_pooled.poolstats.prometheus import CONTENT_TYPE

from .exposition import as_openmetrics, by_process, summed
from .process_exit import write_down

if TYPE_CHECKING:
    from django.http import HttpRequest

__all__ = ["prometheus"]

TIMEOUT = 1.0
"""Seconds that the other processes have for their answer."""

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

# In each process that may be scraped. The pools are closed later, by the handler that was
# registered before, with pool.registry.
atexit.register(write_down)


@never_atomic
@require_safe
def prometheus(request: HttpRequest) -> HttpResponse:
    """Answer with the metrics of all processes of this site on this host, added up.

    ``?by=process`` gives each process's own, with its pid. No pool is used, and no database is
    asked. The view is open to whoever can send requests to it: it belongs in an internal network,
    or behind a decorator of the project's own.

    Args:
        request: A GET request. Who accepts OpenMetrics gets that, others the older text format.
    """
    wanted = request.GET.get("by")
    if wanted not in (None, "process"):
        return HttpResponse("by: only 'process' is known\n", CONTENT_TYPE, status=400)
    text, content_type = (by_process if wanted else summed)(TIMEOUT), CONTENT_TYPE
    if any(str(kind).startswith("application/openmetrics-text") for kind in request.accepted_types):
        text, content_type = as_openmetrics(text), OPENMETRICS
    return HttpResponse(text, content_type, headers={"Cache-Control": "no-store"})

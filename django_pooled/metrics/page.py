"""The page that Prometheus scrapes; any process of the site answers for all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.http import HttpResponse
from django.views.decorators.http import require_safe

from django_pooled.backend.non_atomic import never_atomic
from django_pooled.pool.process_exit import at_exit

from .process_exit import write_last_figures

if TYPE_CHECKING:
    from django.http import HttpRequest

__all__ = ["prometheus"]

TIMEOUT = 1.0
"""Seconds that the other processes have for their answer."""

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

# In each process that may be scraped. The pools are closed later, by the handler that was
# registered before, with pool.registry.
at_exit(write_last_figures)


@never_atomic
@require_safe
def prometheus(request: HttpRequest) -> HttpResponse:
    """Answer with the metrics of all processes of this site on this host, added up.

    ``?by=process`` gives each process's own, with its pid. No pool is used, and no database is
    asked. The view is open to all who can reach it: it belongs in an internal network, or
    behind a decorator of the project's own.

    Args:
        request: A GET request. A client that accepts OpenMetrics gets it, others the older text
            format.

    Raises:
        ImproperlyConfigured: prometheus_client is not installed.
    """
    # Not above: projects without this page need no prometheus_client.
    from django_pooled.poolstats.prometheus import as_openmetrics, as_text

    from .exposition import by_process, summed

    wanted = request.GET.get("by")
    if wanted not in (None, "process"):
        return HttpResponse("by: only 'process' is known\n", TEXT, status=400)
    openmetrics = any(
        str(kind).startswith("application/openmetrics-text") for kind in request.accepted_types
    )
    found = (by_process if wanted else summed)(TIMEOUT, openmetrics=openmetrics)
    if openmetrics:
        text, content_type = as_openmetrics(found.families), OPENMETRICS
    else:
        text, content_type = as_text(found.families), TEXT
        if found.not_summed:
            # OpenMetrics has no comments.
            text = f"# Not added up over processes: {found.not_summed}.\n{text}"
    return HttpResponse(text, content_type, headers={"Cache-Control": "no-store"})

"""Session mode under ASGI: I003."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from django.conf import settings
from django.core.checks import CheckMessage, Info

from .databases import pooled

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["check_asgi"]


def check_asgi(**kwargs: object) -> list[CheckMessage]:
    """Tell a site that is known to run under ASGI what transaction mode would give it: I003."""
    source = _source(os.environ)
    if source is None:
        return []
    return [
        Info(
            f"{source}: the site runs under ASGI, and DATABASES[{alias!r}] is in session mode. A "
            "request holds its connection from its first query to its end, also while it awaits "
            "something else.",
            hint='Set OPTIONS["pool"]["pool_mode"] to "transaction", where views await other '
            "services between queries, or stream: the same pool serves several times as many. "
            "See docs/asgi.md. Silence this if they do not.",
            id="django_pooled.I003",
        )
        for alias, options in pooled().items()
        if options.pool_mode == "session"
    ]


def _source(environment: Mapping[str, str]) -> str | None:
    """Return what says that the site runs under ASGI; None where nothing does.

    The file asgi.py says nothing: each new project has one.
    """
    # Of daphne and Channels; other servers are told on their command line.
    if getattr(settings, "ASGI_APPLICATION", None):
        return "ASGI_APPLICATION"
    arguments = environment.get("GUNICORN_CMD_ARGS", "")
    workers = re.findall(r"(?:^|\s)(?:-k\s*|--worker-class[=\s]\s*)(\S+)", arguments)
    if workers and re.search(r"asgi|uvicorn", workers[-1], re.IGNORECASE):
        return "GUNICORN_CMD_ARGS"
    return None

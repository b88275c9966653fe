"""System checks: of settings, versions and workers at each command, of the server on request.

docs/checks.md has a row for each id. The app registers the first kind, ``base.py`` asks for the
second (`server`) on request; nothing else imports this folder. Those of the first kind must not
import psycopg before they are called: without it one of them says so, and the others say nothing.
"""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING

from django_pooled.diagnostics.required_packages import missing_package

from .asgi import check_asgi
from .celery_worker import check_celery
from .databases import check_databases
from .deadlines import check_deadlines
from .error_handler import check_error_handler
from .lanes import check_lanes
from .retried_reads import check_retried_reads
from .retried_urls import check_retried_urls
from .versions import check_versions
from .workers import check_workers

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.core.checks import CheckMessage

    Check = Callable[..., list[CheckMessage]]

__all__ = [
    "REGISTERED",
    "TAG",
    "check_asgi",
    "check_celery",
    "check_databases",
    "check_deadlines",
    "check_error_handler",
    "check_lanes",
    "check_retried_reads",
    "check_retried_urls",
    "check_versions",
    "check_workers",
]

# Not Tags.database: Django runs those only with --database, and none of these connects.
TAG = "django_pooled"
"""For ``manage.py check --tag django_pooled``."""


def _if_complete(check: Check) -> Check:
    """Have a check say nothing while a package is missing, without which it may not even run."""

    @wraps(check)
    def checked(**kwargs: object) -> list[CheckMessage]:
        return check(**kwargs) if missing_package() is None else []

    return checked


REGISTERED = (
    check_versions,
    *map(
        _if_complete,
        (
            check_databases,
            check_error_handler,
            check_retried_urls,
            check_retried_reads,
            check_deadlines,
            check_lanes,
            check_workers,
            check_asgi,
            check_celery,
        ),
    ),
)
"""What the app registers."""

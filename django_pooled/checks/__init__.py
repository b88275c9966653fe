"""System checks: of settings, versions and workers at each command, of the server on request.

docs/checks.md has a row for each id. The app registers the first kind, ``base.py`` asks for the
second (`server`) on request; nothing else imports this folder. One of the first kind must not
import psycopg: without it, the check that says so still has to run.
"""

from __future__ import annotations

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

REGISTERED = (
    check_databases,
    check_error_handler,
    check_retried_urls,
    check_retried_reads,
    check_deadlines,
    check_lanes,
    check_versions,
    check_workers,
    check_asgi,
    check_celery,
)
"""What the app registers."""

"""The example's site with any engine; under others than ours, with Django's ``atomic``.

They have no ``retry_transaction``, so that a vote is what anybody would write without it, and the
page's transaction is not a snapshot.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[2] / "example_project"))
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "versus.voting")

from tabs_vs_spaces.settings import *  # noqa: F403

import django_pooled

if TYPE_CHECKING:
    from collections.abc import Callable

DATABASES = {"default": json.loads(os.environ["BENCHMARK_DATABASE"])}
ALLOWED_HOSTS = ["*"]
SECRET_KEY = "of no use to anybody"
DEBUG = False


def atomic(function: Callable[..., Any] | None = None, **_: object) -> Callable[..., Any]:
    """Stand in for retry_transaction."""
    from django.db import transaction

    return transaction.atomic(function) if function else transaction.atomic


if not DATABASES["default"]["ENGINE"].startswith("django_pooled"):
    django_pooled.retry_transaction = atomic  # type: ignore[assignment]


def __getattr__(name: str) -> Any:
    if name == "application":
        from django.core.wsgi import get_wsgi_application

        return get_wsgi_application()
    raise AttributeError(name)

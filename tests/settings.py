"""Settings of the tests; the address of the database is filled in by the fixture ``server``."""

from __future__ import annotations

import os
from typing import Any

import dj_database_url

from tests.sites.common_settings import (  # noqa: F401
    ADMIN_APPS,
    ALLOWED_HOSTS,
    DEFAULT_AUTO_FIELD,
    SECRET_KEY,
    USE_TZ,
)

ROOT_URLCONF = "tests.urls"
INSTALLED_APPS = [
    *ADMIN_APPS,
    "django_pooled",
    "django_pooled.tokens",
    "tests.app",
]

_default: dict[str, Any] = {"ENGINE": "django_pooled", "NAME": "django_pooled"}
if "DATABASE_URL" in os.environ:
    # Processes that a test starts find the server here.
    _default = dict(dj_database_url.parse(os.environ["DATABASE_URL"], engine="django_pooled"))
DATABASES = {
    "default": {**_default, "OPTIONS": {"pool": {"max_size": 4, "timeout": 5.0}}},
}

"""A project with four aliases, whose engine comes from the environment."""

from __future__ import annotations

import os
from typing import Any

import dj_database_url

from tests.sites.common_settings import (  # noqa: F401
    ALLOWED_HOSTS,
    DEFAULT_AUTO_FIELD,
    SECRET_KEY,
    USE_TZ,
)

ENGINE = os.environ["ENGINE"]
ROOT_URLCONF = "tests.sites.small.urls"
STATIC_URL = "static/"
# The app as well, without which `check --database` has something to say.
INSTALLED_APPS = ["django_pooled", "tests.app"]
MIDDLEWARE: list[str] = []
MIGRATION_MODULES = {"app": "tests.sites.small.migrations"}

_database: dict[str, Any] = {
    **dj_database_url.parse(os.environ["DATABASE_URL"], engine=ENGINE),
    "NAME": os.environ["DATABASE_NAME"],
}
if ENGINE == "django_pooled":
    # Two that stay idle, so that databases are made, copied and dropped with pools open.
    _database["OPTIONS"] = {
        "pool": {
            "min_size": 2,
            "max_size": 4,
            "timeout": 10.0,
            "stats_dir": False,
            "pool_mode": os.environ["POOL_MODE"],
        }
    }
DATABASES = {
    "default": _database,
    "twin": {**_database},
    "replica": {**_database, "TEST": {"MIRROR": "default"}},
    "other": {**_database, "NAME": f"{_database['NAME']}_other"},
}

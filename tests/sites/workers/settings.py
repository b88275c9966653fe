"""Settings of the site; everything that tests choose comes from the environment."""

from __future__ import annotations

import json
import os

import dj_database_url

from tests.sites.common_settings import (  # noqa: F401
    ALLOWED_HOSTS,
    DEFAULT_AUTO_FIELD,
    SECRET_KEY,
    USE_TZ,
)

ROOT_URLCONF = "tests.sites.workers.urls"
WSGI_APPLICATION = "tests.sites.workers.wsgi.application"
INSTALLED_APPS = ["django_pooled", "tests.app"]
MIDDLEWARE: list[str] = []
if "SITE_RELEASES_STREAMS" in os.environ:
    MIDDLEWARE.append("django_pooled.streaming.ReleaseBeforeStreamingMiddleware")
if "SITE_DEADLINE" in os.environ:
    MIDDLEWARE.append("django_pooled.middleware.DeadlineMiddleware")
    POOLED_DEADLINE = json.loads(os.environ["SITE_DEADLINE"])
if "SITE_LOGS_ERRORS" in os.environ:
    LOGGING = {
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"stderr": {"class": "logging.StreamHandler"}},
        "loggers": {"django.request": {"handlers": ["stderr"]}},
    }

DATABASES = {
    "default": {
        **dj_database_url.parse(os.environ["DATABASE_URL"], engine="django_pooled"),
        "OPTIONS": {"pool": json.loads(os.environ.get("POOL", "{}"))},
    },
}

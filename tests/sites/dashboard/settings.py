"""Settings of the site; everything that tests choose comes from the environment."""

from __future__ import annotations

import json
import os

import dj_database_url

from tests.sites.common_settings import (  # noqa: F401
    ADMIN_APPS,
    ADMIN_TEMPLATES,
    ALLOWED_HOSTS,
    DEFAULT_AUTO_FIELD,
    SECRET_KEY,
    USE_TZ,
)

ROOT_URLCONF = "tests.sites.dashboard.urls"
WSGI_APPLICATION = "tests.sites.dashboard.wsgi.application"
STATIC_URL = "static/"
INSTALLED_APPS = [
    *ADMIN_APPS,
    "django.contrib.staticfiles",
    "django_pooled",
    "django_pooled.dashboard",
]
MIDDLEWARE = [
    "tests.sites.dashboard.policy.strict_policy",
    "django_pooled.middleware.DatabaseUnavailableMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.auth.middleware.LoginRequiredMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = ADMIN_TEMPLATES
# What a poll would trip over if it used the database at all.
SESSION_SAVE_EVERY_REQUEST = True
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]

DATABASES = {
    "default": {
        **dj_database_url.parse(
            os.environ.get("DATABASE_URL", "postgres:"), engine="django_pooled"
        ),
        "ATOMIC_REQUESTS": True,
        "OPTIONS": {"pool": json.loads(os.environ.get("POOL", "{}"))},
    },
}

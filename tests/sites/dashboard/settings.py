"""Settings of the site; everything that tests choose comes from the environment."""

from __future__ import annotations

import json
import os

import dj_database_url

SECRET_KEY = "only for tests"
USE_TZ = True
ALLOWED_HOSTS = ["*"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
ROOT_URLCONF = "tests.sites.dashboard.urls"
WSGI_APPLICATION = "tests.sites.dashboard.wsgi.application"
STATIC_URL = "static/"
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
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
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
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

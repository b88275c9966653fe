"""Settings of the voting app; everything that differs between machines comes from the environment.

DATABASE_URL           PostgreSQL to use; without it, the server that ``manage.py serve`` runs
DJANGO_SECRET_KEY      without it, the one that ``serve`` made and keeps
DJANGO_DEBUG           1 turns DEBUG on
DJANGO_ALLOWED_HOSTS   names to answer to besides this machine's own, separated by commas
POOL_MAX_SIZE          connections per process; 4 unless given
POOL_TIMEOUT           seconds that a request waits for one; 15 unless given
REQUEST_DEADLINE       seconds for all that a request does in the database; 20 unless given

``serve`` tells its workers two things more: EXAMPLE_ENTRY_KEY, with which an operator comes in, and
EXAMPLE_CONTROL, the socket on which it takes orders from the page of the pools.
"""

from __future__ import annotations

import os
from typing import Any

import dj_database_url

from . import local

DEBUG = os.environ.get("DJANGO_DEBUG", "").lower() in {"1", "true", "yes", "on"}
SECRET_KEY = os.environ.get("DJANGO_SECRET_KEY") or local.secret_key()
ALLOWED_HOSTS = ["localhost", "127.0.0.1", "[::1]"] + [
    name.strip() for name in os.environ.get("DJANGO_ALLOWED_HOSTS", "").split(",") if name.strip()
]

INSTALLED_APPS = [
    "votes",
    "operators",
    "faults",  # before the dashboard, whose page it extends
    "django_pooled",
    "django_pooled.dashboard",
    "django_pooled.tokens",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.humanize",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
]

MIDDLEWARE = [
    "django_pooled.middleware.DeadlineMiddleware",
    "django_pooled.middleware.DatabaseUnavailableMiddleware",
    "django_pooled.middleware.RetryReadsMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

# Above POOL_TIMEOUT, below the 30 s after which gunicorn takes a worker for stuck.
POOLED_DEADLINE = float(os.environ.get("REQUEST_DEADLINE") or 20)

ENTRY_KEY = os.environ.get("EXAMPLE_ENTRY_KEY", "")
LOGIN_URL = "enter"
STATIC_URL = "static/"

ROOT_URLCONF = "tabs_vs_spaces.urls"
WSGI_APPLICATION = "tabs_vs_spaces.wsgi.application"
CSRF_FAILURE_VIEW = "votes.views.csrf_failure"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {"context_processors": ["django.template.context_processors.request"]},
    }
]

_url = os.environ.get("DATABASE_URL") or local.database_url()
_default: dict[str, Any] = {"ENGINE": "tabs_vs_spaces.no_database"}
if _url:
    _default = {**dj_database_url.parse(_url, engine="django_pooled")}
    _default.setdefault("OPTIONS", {})["pool"] = {
        "min_size": 1,
        "max_size": int(os.environ.get("POOL_MAX_SIZE") or 4),
        "timeout": float(os.environ.get("POOL_TIMEOUT") or 15),
    }
DATABASES = {"default": _default}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

LANGUAGE_CODE = "en-us"
TIME_ZONE = "UTC"
USE_TZ = True
USE_THOUSAND_SEPARATOR = True

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s [%(process)d] %(name)s: %(message)s"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["console"], "level": "WARNING"},
    # A visitor's mistakes are answered with a page and are no news to whoever runs the site.
    "loggers": {
        "django.request": {"level": "ERROR"},
        "django.security": {"level": "ERROR"},
    },
}

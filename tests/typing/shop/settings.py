"""Settings, as django-stubs' plugin for mypy reads them."""

from __future__ import annotations

from typing import Any

SECRET_KEY = "only for type checks"
INSTALLED_APPS = ["django_pooled", "django_pooled.tokens", "shop"]
DATABASES: dict[str, dict[str, Any]] = {
    "default": {"ENGINE": "shop.backend", "NAME": "shop", "OPTIONS": {"pool": {"max_size": 4}}},
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
ROOT_URLCONF = "shop.urls"
MIDDLEWARE = ["shop.middleware.Unavailable", "shop.middleware.deadline"]

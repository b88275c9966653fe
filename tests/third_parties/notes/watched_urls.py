"""The same addresses, and those of the packages that watch what they query."""

from __future__ import annotations

from typing import Any

from django.apps import apps
from django.urls import include, path

from . import urls

urlpatterns: list[Any] = [*urls.urlpatterns]
if apps.is_installed("debug_toolbar"):
    urlpatterns.append(path("__debug__/", include("debug_toolbar.urls")))
if apps.is_installed("silk"):
    urlpatterns.append(path("silk/", include("silk.urls", namespace="silk")))

"""Addresses of the page, for ``include("django_pooled.dashboard.urls")``."""

from __future__ import annotations

from django.urls import URLPattern, path

from . import views

app_name: str = "django_pooled_dashboard"
urlpatterns: list[URLPattern] = [
    path("", views.page, name="page"),
    path("pass/", views.renew_token, name="pass"),
    path("snapshot/", views.snapshot, name="snapshot"),
    path("past/", views.past, name="past"),
]

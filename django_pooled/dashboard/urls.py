"""Addresses of the page, for ``include("django_pooled.dashboard.urls")``."""

from __future__ import annotations

from django.urls import path

from . import views

app_name = "django_pooled_dashboard"
urlpatterns = [
    path("", views.page, name="page"),
    path("pass/", views.new_pass, name="pass"),
    path("snapshot/", views.snapshot, name="snapshot"),
]

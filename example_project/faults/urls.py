"""Addresses below that of the page of the pools, whose own is here first."""

from __future__ import annotations

from django.urls import path

from . import views

app_name = "faults"
urlpatterns = [
    path("", views.page),
    path("faults/", views.state, name="state"),
    path("faults/<slug:what>/", views.order, name="order"),
]

"""The site's addresses."""

from __future__ import annotations

from django.urls import path

from django_pooled import health
from django_pooled.metrics import prometheus

from . import coroutines, views

urlpatterns = [
    path("health/ready", health.readiness),
    path("health/live", health.liveness),
    path("double/<int:number>", views.double),
    path("add/<name>", views.add),
    path("slow/<seconds>", views.slow),
    path("long/<way>/<what>", views.long),
    path("rows/<int:count>", views.rows),
    path("pools", views.pools),
    path("metrics", prometheus),
    path("body/<how>", views.body),
    path("client/<name>/<what>", views.client),
    path("async/double/<int:number>", views.async_double),
    path("async/add/<name>", views.async_add),
    path("async/slow/<seconds>", views.async_slow),
    path("async/long/<way>/<what>", views.async_long),
    path("coroutine/add/<name>", coroutines.add),
    path("coroutine/add-after-query/<name>", coroutines.add_after_query),
    path("coroutine/beside/<name>", coroutines.beside),
    path("coroutine/long/<name>/<what>", coroutines.long),
    path("coroutine/value/<name>", coroutines.value),
    path("async/events/<int:count>", views.events),
    path("async/threads/<int:count>/<way>", views.in_threads),
    path("async/rows/<int:count>", views.async_rows),
]

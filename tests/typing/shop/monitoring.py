"""Metrics of the pools, and names for what they are used for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.urls import path
from prometheus_client import CollectorRegistry
from typing_extensions import assert_type

from django_pooled.activity import current
from django_pooled.metrics import PoolCollector, prometheus
from django_pooled.metrics.opentelemetry import instrument, uninstrument
from django_pooled.naming import NameViewMiddleware, name_celery_tasks

if TYPE_CHECKING:
    from django.http import HttpRequest, HttpResponse

name_celery_tasks()
instrument()
instrument(meter_provider=None)
uninstrument()

registry = CollectorRegistry()
registry.register(PoolCollector())
registry.register(PoolCollector(whole_site=True))

urlpatterns = [path("metrics", prometheus)]


class Named(NameViewMiddleware):
    pass


def metrics(request: HttpRequest) -> HttpResponse:
    token = current.set("shop.metrics")
    assert_type(current.get(), str | None)
    try:
        return prometheus(request)
    finally:
        current.reset(token)

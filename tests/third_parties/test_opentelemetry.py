"""Spans of attempts and checkouts beside OpenTelemetry's own instrumentations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.third_parties.conftest import MakeSite

for package in ("django", "psycopg"):
    name = f"opentelemetry.instrumentation.{package}"
    pytest.importorskip(name, reason=f"{name} is not installed")


def test_statements_lie_in_their_attempt_and_attempts_in_their_request(make_site: MakeSite) -> None:
    attempt = "attempt tests.third_parties.notes.urls.add"
    seen = make_site(name="shop").call(look)
    assert seen["status"] == 200
    # By the ends of the spans: each with the spans that it lies in.
    assert seen["spans"] == [
        ["checkout shop", attempt, "GET add"],
        ["INSERT", attempt, "GET add"],
        ["SELECT", attempt, "GET add"],
        [attempt, "GET add"],
        ["checkout shop", attempt, "GET add"],
        ["INSERT", attempt, "GET add"],
        ["SELECT", attempt, "GET add"],
        [attempt, "GET add"],
        ["GET add"],
    ]


def look() -> dict[str, Any]:
    from django.core.management import call_command
    from django.db import connection
    from django.test import Client
    from opentelemetry.instrumentation.django import DjangoInstrumentor
    from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from django_pooled import registry
    from django_pooled.metrics.tracing import instrument
    from django_pooled.testing import fail_next_transaction

    call_command("migrate", verbosity=0)
    connection.close()
    registry.close_all()
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    DjangoInstrumentor().instrument(tracer_provider=provider)
    PsycopgInstrumentor().instrument(tracer_provider=provider)
    instrument(provider, shortest_wait=0.0)
    with fail_next_transaction("40001"):
        response = Client().get("/add", {"text": "written"})
    spans = {span.context.span_id: span for span in exporter.get_finished_spans()}

    def path(span: Any) -> list[str]:
        outer = path(spans[span.parent.span_id]) if span.parent else []
        return [span.name, *outer]

    # The pool's own questions, such as those after a lost answer, are statements too.
    named = [path(span) for span in spans.values() if "notes_note" in _text(span)]
    return {"status": response.status_code, "spans": named}


def _text(span: Any) -> str:
    """Return the span's statement; for any other span, what passes for one of the view's."""
    attributes = span.attributes
    return str(attributes.get("db.statement", attributes.get("db.query.text", "notes_note")))

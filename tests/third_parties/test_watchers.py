"""Packages that watch statements or add to them, with nothing changed but the engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.third_parties.conftest import MakeSite

for package in ("opentelemetry.instrumentation.psycopg", "pghistory", "sentry_sdk"):
    pytest.importorskip(package, reason=f"{package} is not installed")

SETTINGS = """
INSTALLED_APPS = [
    ..., "django.contrib.contenttypes", "pgtrigger", "pghistory", "tests.third_parties.history",
]
"""


@pytest.fixture(scope="module")
def seen(make_site: MakeSite) -> Any:
    """What was seen in a site with all of them, each in its turn."""
    return make_site(settings=SETTINGS).call(look)


def test_pghistory_keeps_what_was_committed_and_who_did_it(seen: Any) -> None:
    # Once each, although the transaction was restarted.
    assert seen["history"]["events"] == [["me", "insert"], ["me", "update"]]


def test_statements_that_pghistory_adds_to_may_have_a_commit_without_answer(seen: Any) -> None:
    assert seen["history"]["rows"] == [11, 20]
    assert seen["history"]["struck"] == [1, 1]


def test_pghistory_leaves_no_context_behind_on_a_connection(seen: Any) -> None:
    assert seen["history"]["left"] in (None, "")


def test_sentry_has_a_span_for_each_statement_of_each_attempt(seen: Any) -> None:
    assert seen["sentry"] == ["connect", "INSERT", "connect", "INSERT"]


def test_opentelemetry_has_a_span_for_each_statement_and_each_question(seen: Any) -> None:
    # The last two ask, on another connection, what became of the COMMIT.
    assert seen["opentelemetry"] == ["INSERT", "SELECT", "SELECT"]


# What follows runs in the site.


def look() -> Any:
    from django.core.management import call_command

    call_command("migrate", run_syncdb=True, verbosity=0)
    call_command("pgtrigger", "install", verbosity=0)
    # The last for good: it is not to be undone for classes derived from psycopg's connection.
    return {"history": history(), "sentry": sentry(), "opentelemetry": opentelemetry()}


def history() -> dict[str, Any]:
    import pghistory
    from django.db import connection
    from pghistory.models import Events

    from django_pooled import retry_transaction
    from django_pooled.testing import fail_next_transaction
    from tests.third_parties.history.models import Price

    @retry_transaction
    def rise(amount: int) -> None:
        price = Price.objects.create(amount=amount)
        price.amount += 1
        price.save()

    with pghistory.context(who="me"):
        with fail_next_transaction("40001") as restart:
            rise(10)
        events = [
            [event.pgh_context["who"], event.pgh_label]
            for event in Events.objects.order_by("pgh_created_at")
        ]
        with fail_next_transaction(None, phase="answer") as loss:
            retry_transaction(Price.objects.create)(amount=20)
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('pghistory.context_id', true)")
        [left] = cursor.fetchone()
    return {
        "events": events,
        "rows": list(Price.objects.order_by("id").values_list("amount", flat=True)),
        "struck": [restart.struck, loss.struck],
        "left": left,
    }


def sentry() -> list[str]:
    import sentry_sdk
    from django.db import connection
    from sentry_sdk.integrations.django import DjangoIntegration

    from django_pooled import retry_transaction
    from django_pooled.testing import fail_next_transaction
    from tests.third_parties.notes.models import Note

    sent: list[Any] = []

    class Transport(sentry_sdk.transport.Transport):
        def capture_envelope(self, envelope: Any) -> None:
            sent.append(envelope)

    sentry_sdk.init(
        dsn="http://nobody@127.0.0.1:1/1",
        transport=Transport,
        integrations=[DjangoIntegration()],
        default_integrations=False,
        traces_sample_rate=1.0,
    )
    connection.close()

    @retry_transaction
    def write() -> None:
        Note.objects.create(text="written")

    with sentry_sdk.start_transaction(name="writes"), fail_next_transaction("40001"):
        write()
    sentry_sdk.flush()
    spans = [
        span
        for envelope in sent
        for item in envelope.items
        for span in (item.payload.json or {}).get("spans", ())
    ]
    return [span["description"].split()[0] for span in spans if span["op"] == "db"]


def opentelemetry() -> list[str]:
    from django.db import connection
    from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from django_pooled import registry, retry_transaction
    from django_pooled.testing import fail_next_transaction
    from tests.third_parties.notes.models import Note

    connection.close()
    registry.close_all()
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    PsycopgInstrumentor().instrument(tracer_provider=provider)

    @retry_transaction
    def write() -> int:
        Note.objects.create(text="written")
        return Note.objects.count()

    with fail_next_transaction(None, phase="answer"):
        write()
    return [span.name for span in spans.get_finished_spans()]

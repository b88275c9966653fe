"""Spans for OpenTelemetry, as the SDK exports them."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest
from asgiref.sync import sync_to_async
from django.db import IntegrityError, connections
from django.db.transaction import set_rollback

from django_pooled import (
    AmbiguousCommit,
    Backoff,
    CheckoutTimeout,
    PoolExhausted,
    retry_transaction,
)
from django_pooled.activity import current
from django_pooled.signals import (
    attempt_ended,
    attempt_started,
    checkout_failed,
    connection_checked_out,
)
from django_pooled.testing import fail_next_transaction
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk.trace import ReadableSpan

    from embedded_postgres import EmbeddedServer
    from tests.support.pools import MakeDatabase

pytest.importorskip("opentelemetry.sdk", reason="the SDK is not installed")

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv.attributes import (
    code_attributes,
    db_attributes,
    error_attributes,
)
from opentelemetry.trace import StatusCode, get_current_span

from django_pooled.metrics.tracing import instrument, uninstrument

QUICK = Backoff(initial=0.001, maximum=0.002)
SIGNALS = (attempt_ended, attempt_started, checkout_failed, connection_checked_out)


class Traced:
    """A provider, and what it has exported."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("tests")

    def spans(self, beginning: str) -> list[ReadableSpan]:
        """Return the spans whose names begin so, in the order of their ends."""
        found = self.exporter.get_finished_spans()
        return [span for span in found if span.name.startswith(beginning)]

    def figures(self, beginning: str) -> list[dict[str, Any]]:
        return [dict(span.attributes or {}) for span in self.spans(beginning)]


@pytest.fixture
def traced() -> Iterator[Traced]:
    """Attempts, and checkouts however short, are traced."""
    made = Traced()
    instrument(made.provider, shortest_wait=0.0)
    yield made
    uninstrument()
    made.provider.shutdown()


def execute(alias: str, statement: str) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute(statement)


def test_each_attempt_is_a_span_with_its_number_outcome_and_sqlstate(
    traced: Traced, server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server, name="shop")

    @retry_transaction(using=alias, backoff=QUICK)
    def pay() -> str:
        with traced.tracer.start_as_current_span("inside"):
            execute(alias, "SELECT 1")
        return "paid"

    with traced.tracer.start_as_current_span("request") as request:
        with fail_next_transaction("40P01", using=alias, times=2):
            assert pay() == "paid"
        # Without a trace of the attempts in what follows.
        assert get_current_span() is request
    name = f"{__name__}.{pay.__qualname__}"
    always = {
        db_attributes.DB_SYSTEM_NAME: "postgresql",
        "db.client.connection.pool.name": "shop",
        "django_pooled.database": alias,
        code_attributes.CODE_FUNCTION_NAME: name,
    }
    failed = {
        db_attributes.DB_RESPONSE_STATUS_CODE: "40P01",
        error_attributes.ERROR_TYPE: "OperationalError",
        "django_pooled.attempt.outcome": "restarted",
    }
    assert traced.figures(f"attempt {name}") == [
        {**always, **failed, "django_pooled.attempt.number": 1},
        {**always, **failed, "django_pooled.attempt.number": 2},
        {
            **always,
            "django_pooled.attempt.number": 3,
            "django_pooled.attempt.outcome": "committed",
        },
    ]
    attempts = traced.spans("attempt")
    statuses = [span.status.status_code for span in attempts]
    assert statuses == [StatusCode.ERROR, StatusCode.ERROR, StatusCode.UNSET]
    parents = {span.parent and span.parent.span_id for span in attempts}
    assert parents == {request.get_span_context().span_id}
    # An error's text may quote rows.
    assert [span.events for span in attempts] == [(), (), ()]
    inside = [span.parent and span.parent.span_id for span in traced.spans("inside")]
    assert inside == [span.context.span_id for span in attempts]


def test_the_wait_for_a_connection_lies_in_its_attempt(
    traced: Traced, server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server, name="shop")

    @retry_transaction(using=alias, backoff=QUICK)
    def read() -> None:
        execute(alias, "SELECT 1")

    with fail_next_transaction(None, using=alias):
        read()
    lost, committed = traced.spans("attempt")
    assert (lost.attributes or {})["django_pooled.attempt.outcome"] == "restarted"
    checkouts = traced.spans("checkout shop")
    parents = [span.parent and span.parent.span_id for span in checkouts]
    assert parents == [lost.context.span_id, committed.context.span_id]


def test_a_coroutine_runs_within_the_span_of_its_attempt(
    traced: Traced, server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server, name="shop")

    @retry_transaction(using=alias, backoff=QUICK)
    async def pay() -> None:
        with traced.tracer.start_as_current_span("inside"):
            await sync_to_async(execute)(alias, "SELECT 1")

    async def request() -> None:
        with traced.tracer.start_as_current_span("request") as span:
            await pay()
            assert get_current_span() is span

    with fail_next_transaction("40001", using=alias):
        asyncio.run(request())
    [outer] = traced.spans("request")
    attempts = traced.spans("attempt")
    outcomes = [(span.attributes or {})["django_pooled.attempt.outcome"] for span in attempts]
    assert outcomes == ["restarted", "committed"]
    for span, inside in zip(attempts, traced.spans("inside"), strict=True):
        assert span.parent is not None
        assert span.parent.span_id == outer.context.span_id
        assert inside.parent is not None
        assert inside.parent.span_id == span.context.span_id


@pytest.mark.parametrize("outcome", ["failed", "unknown", "rolled back"])
def test_an_outcome_is_told(
    traced: Traced, server: EmbeddedServer, make_database: MakeDatabase, outcome: str
) -> None:
    alias = make_database(server)

    @retry_transaction(using=alias, commit_check="raise")
    def write() -> None:
        execute(alias, "CREATE TEMP TABLE written (id int) ON COMMIT DROP")
        if outcome == "failed":
            raise IntegrityError("secret")
        if outcome == "rolled back":
            set_rollback(True, using=alias)

    if outcome == "unknown":
        with (
            fail_next_transaction(None, phase="answer", using=alias),
            pytest.raises(AmbiguousCommit),
        ):
            write()
    elif outcome == "failed":
        with pytest.raises(IntegrityError):
            write()
    else:
        write()
    [figures] = traced.figures("attempt")
    assert figures["django_pooled.attempt.outcome"] == outcome
    error = {"failed": "IntegrityError", "unknown": "AmbiguousCommit"}.get(outcome)
    assert figures.get("error.type") == error
    assert not get_current_span().is_recording()


def test_a_wait_is_a_span_that_begins_when_it_began(
    traced: Traced, server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server, name="shop", max_size=1)
    waited = threading.Event()

    def wait() -> None:
        token = current.set("shop.views.pay")
        with traced.tracer.start_as_current_span("request"):
            execute(alias, "SELECT 1")
        current.reset(token)
        connections[alias].close()
        waited.set()

    execute(alias, "SELECT 1")
    pool = connections[alias].checked_out_from  # type: ignore[attr-defined]
    waiter = threading.Thread(target=wait)
    waiter.start()
    wait_until(lambda: pool.gauges().waiting == 1)
    connections[alias].close()
    waiter.join()
    [request] = traced.spans("request")
    first, second = traced.spans("checkout shop")
    assert first.parent is None
    assert second.parent is not None
    assert second.parent.span_id == request.context.span_id
    for span in (first, second):
        assert span.start_time is not None
        assert span.end_time is not None
        assert 0 <= span.end_time - span.start_time < 60e9
    assert (second.start_time or 0) >= (request.start_time or 0)
    assert (second.end_time or 0) <= (request.end_time or 0)
    assert (second.attributes or {})["django_pooled.activity"] == "shop.views.pay"
    assert second.status.status_code is StatusCode.UNSET


def test_a_checkout_that_fails_is_a_span_with_its_error(
    traced: Traced, server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server, name="shop", max_size=1, timeout=0.2, max_waiting=1)
    execute(alias, "SELECT 1")
    pool = connections[alias].checked_out_from  # type: ignore[attr-defined]
    raised: list[Exception] = []

    def wait() -> None:
        try:
            execute(alias, "SELECT 1")
        except (CheckoutTimeout, PoolExhausted) as error:
            raised.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    wait_until(lambda: pool.gauges().waiting == 1 or bool(raised))
    second = threading.Thread(target=wait)
    second.start()
    waiter.join()
    second.join()
    failed = [span for span in traced.spans("checkout shop") if not span.status.is_ok]
    found = {(span.attributes or {})["error.type"] for span in failed}
    assert found == {type(error).__name__ for error in raised}
    assert "CheckoutTimeout" in found
    timeout = next(
        span for span in failed if (span.attributes or {})["error.type"] == "CheckoutTimeout"
    )
    assert (timeout.end_time or 0) - (timeout.start_time or 0) >= 0.2e9
    assert [span.events for span in failed] == [()] * len(failed)


def test_a_checkout_without_a_wait_has_no_span(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    made = Traced()
    instrument(made.provider, shortest_wait=60.0)
    try:
        # Another call changes nothing.
        instrument(made.provider, shortest_wait=0.0)
        execute(make_database(server), "SELECT 1")
    finally:
        uninstrument()
        uninstrument()
    assert made.spans("checkout") == []
    assert [signal for signal in SIGNALS if signal.receivers] == []


def test_an_attempt_within_another_is_its_child(
    traced: Traced, server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    outer_alias, inner_alias = make_database(server), make_database(server)

    @retry_transaction(using=inner_alias)
    def inner() -> None:
        execute(inner_alias, "SELECT 1")

    @retry_transaction(using=outer_alias)
    def outer() -> None:
        inner()

    outer()
    first, second = traced.spans("attempt")
    assert first.name.endswith("inner")
    assert first.parent is not None
    assert first.parent.span_id == second.context.span_id
    assert second.parent is None

"""The lines of docs/monitoring.md for Sentry, and the events that it gets by them."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from django.db import connection
from django.http import HttpResponse
from django.urls import path

from django_pooled import retry_transaction

if TYPE_CHECKING:
    from django.http import HttpRequest

    from tests.third_parties.conftest import MakeSite

pytest.importorskip("sentry_sdk", reason="sentry-sdk is not installed")

PAGE = Path(__file__).resolve().parents[2] / "docs" / "monitoring.md"
HELD = f"the only connection is in use by {__name__}.look"
SETTINGS = f'ROOT_URLCONF = "{__name__}"'


def query(statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)


def read(request: HttpRequest) -> HttpResponse:
    query("SELECT 1")
    return HttpResponse("read")


@retry_transaction(commit_check="raise")
def pay(request: HttpRequest) -> HttpResponse:
    query("CREATE TABLE paid (id int)")
    return HttpResponse("paid")


urlpatterns = [path("read", read), path("pay", pay)]


@pytest.fixture(scope="module")
def events(make_site: MakeSite) -> Any:
    """The events of a full pool and of a lost COMMIT, by what they are of."""
    return make_site(settings=SETTINGS, max_size=1, timeout=0.3).call(look)


def test_an_error_of_a_full_pool_tells_who_has_the_connections(events: Any) -> None:
    event = events["raised"]
    assert event["tags"] == {"alias": "default"}
    assert event["fingerprint"] == ["django_pooled", "CheckoutTimeout", "default"]
    context = event["contexts"]["pool"]
    assert re.fullmatch(rf"{HELD}, for \d+\.\d s", context.pop("holders"))
    assert context.pop("elapsed") >= 0.3
    context.pop("type", None)  # Sentry's own
    assert context == {"size": 1, "idle": 0, "in_use": 1, "waiting": 0, "max_size": 1}


def test_a_request_that_was_answered_503_is_an_event(events: Any) -> None:
    event = events["answered"]
    assert event["level"] == "warning"
    assert event["tags"] == {
        "event": "answered_503",
        "alias": "default",
        "error": "CheckoutTimeout",
    }
    assert event["fingerprint"] == ["django_pooled", "answered_503", "default"]
    assert HELD in event["logentry"]["formatted"]


def test_a_commit_of_unknown_outcome_has_its_database(events: Any) -> None:
    event = events["ambiguous"]
    # Django's integration has the view.
    assert event["transaction"] == "/pay"
    assert event["tags"] == {"alias": "default"}
    assert event["fingerprint"] == ["django_pooled", "AmbiguousCommit", "default"]
    assert event["exception"]["values"][-1]["type"] == "AmbiguousCommit"


def look() -> dict[str, Any]:
    import sentry_sdk
    from django.test import Client

    from django_pooled.testing import fail_next_transaction

    sent: list[dict[str, Any]] = []

    class Transport(sentry_sdk.transport.Transport):
        def capture_envelope(self, envelope: Any) -> None:
            sent.extend(event for item in envelope.items if (event := item.payload.json))

    _, recipe = PAGE.read_text("utf-8").split("## Sentry\n")
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", recipe, re.MULTILINE | re.DOTALL))
    code = code.replace('dsn="…"', 'dsn="http://nobody@127.0.0.1:1/1", transport=Transport')
    exec(code, {"Transport": Transport})
    client = Client(raise_request_exception=False)

    def events_of(action: Any) -> list[dict[str, Any]]:
        sent.clear()
        thread = threading.Thread(target=action)
        thread.start()
        thread.join()
        sentry_sdk.flush()
        return list(sent)

    def raise_it() -> None:
        try:
            query("SELECT 1")
        except Exception:
            sentry_sdk.capture_exception()

    def lose_the_answer() -> None:
        with fail_next_transaction(None, phase="answer"):
            client.get("/pay")
        connection.close()

    connection.ensure_connection()
    [raised] = events_of(raise_it)
    [answered] = events_of(lambda: client.get("/read"))
    connection.close()
    found = events_of(lose_the_answer)
    [ambiguous] = [event for event in found if "exception" in event]
    return {"raised": raised, "answered": answered, "ambiguous": ambiguous}

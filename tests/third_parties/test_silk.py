"""django-silk: it records each statement, and its own rows do not come in the way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.third_parties.conftest import MakeSite

pytest.importorskip("silk", reason="django-silk is not installed")

SETTINGS = """
INSTALLED_APPS = [..., "django.contrib.auth", "django.contrib.contenttypes", "silk"]
MIDDLEWARE = [..., "silk.middleware.SilkyMiddleware"]
ROOT_URLCONF = "tests.third_parties.notes.watched_urls"
"""


@pytest.fixture(scope="module", params=["session", "transaction"])
def seen(request: pytest.FixtureRequest, make_site: MakeSite) -> Any:
    """What it recorded of each request, in a site on this engine."""
    return make_site(settings=SETTINGS, pool_mode=request.param).call(look)


def test_it_records_the_statements_of_a_view(seen: Any) -> None:
    assert seen["/"] == {"status": 200, "statements": ["SELECT"]}


# On any engine it misses what does not pass through SQLCompiler.execute_sql: the ORM's own INSERT,
# and cursors.


def test_it_records_the_statements_of_a_transaction_and_none_that_ride_along(seen: Any) -> None:
    assert seen["/add"] == {"status": 200, "statements": ["SELECT"]}


def test_it_records_both_attempts_of_a_restarted_transaction(seen: Any) -> None:
    assert seen["restarted"] == {"status": 200, "statements": ["SELECT"] * 2}


def test_it_records_both_attempts_where_the_connection_was_lost(seen: Any) -> None:
    assert seen["lost"] == {"status": 200, "statements": ["SELECT", "SELECT", "SELECT"]}


def test_what_was_written_once_is_there_once(seen: Any) -> None:
    assert seen["notes"] == ["one", "two", "three"]


# What follows runs in the site.


def look() -> Any:
    from django.core.management import call_command
    from django.test import Client
    from silk.models import Request

    from django_pooled.testing import fail_next_transaction
    from tests.third_parties.notes.models import Note
    from tests.third_parties.notes.urls import prepare_a_loss

    def get(address: str) -> dict[str, Any]:
        response = Client().get(address)
        recorded = Request.objects.latest("start_time")
        queries = recorded.queries.order_by("start_time").values_list("query", flat=True)
        return {
            "status": response.status_code,
            "statements": [query.split()[0] for query in queries],
        }

    call_command("migrate", verbosity=0)
    prepare_a_loss()
    found: dict[str, Any] = {"/": get("/"), "/add": get("/add?text=one")}
    with fail_next_transaction("40001"):
        found["restarted"] = get("/add?text=two")
    found["lost"] = get("/add_after_a_loss?text=three")
    found["notes"] = list(Note.objects.order_by("id").values_list("text", flat=True))
    call_command("silk_clear_request_log")
    assert Request.objects.count() == 0
    return found

"""django-debug-toolbar: its SQL panel shows each statement, those of a restarted attempt too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.third_parties.conftest import MakeSite

pytest.importorskip("debug_toolbar", reason="django-debug-toolbar is not installed")

SETTINGS = """
DEBUG = True
INTERNAL_IPS = ["127.0.0.1"]
STATIC_URL = "static/"
INSTALLED_APPS = [..., "django.contrib.staticfiles", "debug_toolbar"]
MIDDLEWARE = ["debug_toolbar.middleware.DebugToolbarMiddleware", ...]
ROOT_URLCONF = "tests.third_parties.notes.watched_urls"
"""


@pytest.fixture(scope="module", params=["session", "transaction"])
def seen(request: pytest.FixtureRequest, make_site: MakeSite) -> Any:
    """What the SQL panel showed of each request, in a site on this engine."""
    return make_site(settings=SETTINGS, pool_mode=request.param).call(look)


def kinds(request: dict[str, Any]) -> list[str]:
    """Return the first word of each statement."""
    return [query["sql"].split()[0] for query in request["queries"]]


def test_it_shows_the_statements_of_a_view(seen: Any) -> None:
    assert seen["/"]["status"] == 200
    assert kinds(seen["/"]) == ["SELECT"]


def test_it_shows_the_statements_of_a_transaction_and_none_that_ride_along(seen: Any) -> None:
    assert kinds(seen["/add"]) == ["INSERT", "SELECT"]
    assert all("pg_" not in query["sql"] for query in seen["/add"]["queries"])
    assert len({query["trans_id"] for query in seen["/add"]["queries"]}) == 1


def test_it_shows_both_attempts_of_a_restarted_transaction(seen: Any) -> None:
    assert seen["restarted"]["body"] == "2"
    assert kinds(seen["restarted"]) == ["INSERT", "SELECT"] * 2


def test_it_shows_both_attempts_where_the_connection_was_lost(seen: Any) -> None:
    assert seen["lost"]["body"] == "3"
    assert kinds(seen["lost"]) == [
        *("SELECT", "INSERT", "SELECT"),
        *("SELECT", "INSERT", "SELECT", "SELECT"),
    ]


# What follows runs in the site.


def look() -> Any:
    from debug_toolbar.store import get_store
    from django.core.management import call_command
    from django.test import Client

    from django_pooled.testing import fail_next_transaction
    from tests.third_parties.notes.urls import prepare_a_loss

    def get(address: str) -> dict[str, Any]:
        response = Client().get(address)
        store = get_store()
        latest = list(store.request_ids())[-1]
        return {
            "status": response.status_code,
            "body": response.content.decode().removeprefix("<html><body>").split("<")[0].strip(),
            "queries": [
                {"sql": query["sql"], "trans_id": query.get("trans_id")}
                for query in store.panel(latest, "SQLPanel").get("queries", [])
            ],
        }

    call_command("migrate", verbosity=0)
    prepare_a_loss()
    found = {"/": get("/"), "/add": get("/add?text=one")}
    with fail_next_transaction("40001"):
        found["restarted"] = get("/add?text=two")
    found["lost"] = get("/add_after_a_loss?text=three")
    return found

"""Backends that are built on this engine pool like it, and are taken for one of its kind."""

from __future__ import annotations

import io
import threading
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.pools import snapshot_of

if TYPE_CHECKING:
    from tests.third_parties.conftest import MakeSite

pytest.importorskip(
    "django_zero_downtime_migrations",
    reason="django-pg-zero-downtime-migrations is not installed",
)

SETTINGS = """
for order in ("theirs_first", "ours_first"):
    DATABASES[order] = {"ENGINE": f"tests.third_parties.backends.{order}", "NAME": "shop"}
"""
ALIASES = ["default", "theirs_first", "ours_first"]


@pytest.fixture(scope="module")
def seen(make_site: MakeSite) -> Any:
    """What was seen in a site with three backends that are built on this engine."""
    site = make_site("Building on this engine", SETTINGS, max_size=1, timeout=0.5)
    return site.call(look, str(site.folder))


@pytest.mark.parametrize("alias", ALIASES)
def test_connections_come_from_a_pool_and_go_back_to_it(seen: Any, alias: str) -> None:
    assert seen[alias]["counters"] == {"connects": 1, "checkouts": 3, "checkins": 3}


@pytest.mark.parametrize("alias", ALIASES)
def test_transactions_are_restarted(seen: Any, alias: str) -> None:
    assert seen[alias]["restarts"] == {"40001": 1}


@pytest.mark.parametrize("alias", ALIASES)
def test_the_checks_read_their_options(seen: Any, alias: str) -> None:
    assert seen[alias]["checks"] == ["django_pooled.E001"]


@pytest.mark.parametrize("alias", ALIASES)
def test_poolstats_shows_their_pools(seen: Any, alias: str) -> None:
    assert alias in seen["poolstats"]


def test_a_request_that_finds_the_pool_saturated_is_answered_503(seen: Any) -> None:
    assert seen["statuses"] == [200, 503, 200]


@pytest.mark.parametrize("alias", ALIASES)
def test_connections_are_released_before_streaming(seen: Any, alias: str) -> None:
    assert seen[alias]["released"] is True


def test_the_documented_backend_has_what_it_was_built_from(seen: Any) -> None:
    assert seen["default"]["editor"].startswith("django_zero_downtime_migrations.")


def test_theirs_first_has_the_first_word_in_everything(seen: Any) -> None:
    assert seen["theirs_first"]["editor"] == "tests.third_parties.backends.theirs.SchemaEditor"
    assert seen["theirs_first"]["calls"] == [
        "get_connection_params", "get_new_connection", "init_connection_state",
        "create_cursor", "close",
    ]  # fmt: skip
    assert seen["theirs_first"]["session"] == "theirs"


def test_ours_first_leaves_out_only_how_theirs_connects(seen: Any) -> None:
    assert seen["ours_first"]["editor"] == "tests.third_parties.backends.theirs.SchemaEditor"
    assert seen["ours_first"]["calls"] == [
        "get_connection_params", "init_connection_state", "create_cursor", "close",
    ]  # fmt: skip
    assert seen["ours_first"]["session"] == "theirs"


# What follows runs in the site.


def look(folder: str) -> Any:
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    found: dict[str, Any] = {alias: try_out(alias) for alias in ALIASES}
    output = io.StringIO()
    call_command("poolstats", format="json", stats_dir=folder, stdout=output)
    found["poolstats"] = output.getvalue()
    found["statuses"] = saturate()
    return found


def try_out(alias: str) -> dict[str, Any]:
    from django.conf import settings
    from django.db import connections

    from django_pooled import checks, registry, retry_transaction
    from django_pooled.streaming import release_connections
    from django_pooled.testing import fail_next_transaction
    from tests.third_parties.backends import theirs

    wrapper = connections[alias]
    registry.close_pools_of(alias)
    wrapper.close()
    theirs.calls.clear()
    with wrapper.cursor() as cursor:
        cursor.execute("SELECT current_setting('application_name')")
        session = cursor.fetchone()
    wrapper.close()
    calls = list(dict.fromkeys(theirs.calls))

    @retry_transaction(using=alias)
    def query() -> None:
        with wrapper.cursor() as cursor:
            cursor.execute("SELECT 1")

    with fail_next_transaction("40001", using=alias):
        query()
    wrapper.ensure_connection()
    release_connections()
    released = wrapper.connection is None
    counters = snapshot_of(alias).counters

    pool = settings.DATABASES[alias]["OPTIONS"]["pool"]
    pool["max_size"] = "many"
    ids = [message.id for message in checks.check_databases()]
    pool["max_size"] = 1
    editor = wrapper.SchemaEditorClass
    return {
        "counters": {
            name: getattr(counters, name) for name in ("connects", "checkouts", "checkins")
        },
        "restarts": dict(counters.restarts),
        "checks": ids,
        "released": released,
        "editor": f"{editor.__module__}.{editor.__qualname__}",
        "calls": calls,
        "session": session[0] if session else None,
    }


def saturate() -> list[int]:
    from django.db import connections
    from django.test import Client

    def get() -> int:
        status = Client(raise_request_exception=False).get("/").status_code
        connections.close_all()
        return status

    statuses = [get()]
    holds, done = threading.Event(), threading.Event()

    def hold() -> None:
        connections["default"].ensure_connection()
        holds.set()
        done.wait(10)
        connections.close_all()

    holder = threading.Thread(target=hold)
    holder.start()
    holds.wait(10)
    statuses.append(get())
    done.set()
    holder.join()
    return [*statuses, get()]

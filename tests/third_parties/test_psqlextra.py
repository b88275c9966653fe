"""django-postgres-extra: its backend, with this engine as its base."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.third_parties.conftest import MakeSite

pytest.importorskip(
    "psqlextra", reason="django-postgres-extra is not installed: it is not for Django 6 yet"
)

# hstore does not come with every PostgreSQL.
SETTINGS = """
INSTALLED_APPS += ["tests.third_parties.extra"]
POSTGRES_EXTRA_AUTO_EXTENSION_SET_UP = False
"""


@pytest.fixture(scope="module")
def seen(make_site: MakeSite) -> Any:
    """What was seen in a site with its backend."""
    return make_site("django-postgres-extra", SETTINGS, max_size=2).call(look)


def test_its_backend_has_a_pool(seen: Any) -> None:
    assert seen["kinds"] == ["psqlextra.backend.base", "django_pooled.base"]
    assert seen["pool"] == {"alias": "default", "max_size": 2, "connects": 1}


def test_upserts_and_partitions_work(seen: Any) -> None:
    assert seen["votes"] == {"tabs": 3, "spaces": 1}
    assert seen["partitions"] == ["extra_visit_default", "extra_visit_may"]


def test_an_upsert_whose_commit_had_no_answer_counts_once(seen: Any) -> None:
    assert seen["struck"] == 1
    assert seen["votes after"] == 4


# What follows runs in the site.


def look() -> Any:
    from datetime import date

    from django.core.management import call_command
    from django.db import connection, connections
    from django.db.models import F
    from psqlextra.query import ConflictAction

    from django_pooled import registry, retry_transaction
    from django_pooled.testing import fail_next_transaction
    from tests.third_parties.extra.models import Tally, Visit

    call_command("migrate", run_syncdb=True, verbosity=0)

    def vote(name: str) -> None:
        Tally.objects.on_conflict(
            ["name"], ConflictAction.UPDATE, update_values={"votes": F("votes") + 1}
        ).insert(name=name, votes=1)

    for name in ("tabs", "spaces", "tabs", "tabs"):
        vote(name)
    found: dict[str, Any] = {"votes": dict(Tally.objects.values_list("name", "votes"))}

    with connection.schema_editor() as editor:
        editor.delete_model(Visit)
        editor.create_partitioned_model(Visit)  # type: ignore[attr-defined]
        editor.add_default_partition(Visit, "default")  # type: ignore[attr-defined]
        editor.add_range_partition(  # type: ignore[attr-defined]
            Visit, "may", from_values="2026-05-01", to_values="2026-06-01"
        )
    for day in (date(2026, 5, 2), date(2026, 7, 2)):
        Visit.objects.create(day=day)
    with connection.cursor() as cursor:
        cursor.execute("SELECT DISTINCT tableoid::regclass::text FROM extra_visit ORDER BY 1")
        found["partitions"] = [row[0] for row in cursor.fetchall()]

    [pool] = registry.snapshots()
    found["pool"] = {
        "alias": pool.alias, "max_size": pool.max_size, "connects": pool.counters.connects
    }  # fmt: skip
    kinds = [kind.__module__ for kind in type(connections["default"]).__mro__]
    found["kinds"] = kinds[:2]

    with fail_next_transaction(None, phase="answer") as fault:
        retry_transaction(vote)("tabs")
    found["struck"] = fault.struck
    found["votes after"] = Tally.objects.get(name="tabs").votes
    return found

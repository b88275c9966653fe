"""django-prometheus: its counters go on counting, and one pool serves all threads."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.third_parties.conftest import MakeSite

pytest.importorskip("django_prometheus", reason="django-prometheus is not installed")


@pytest.fixture(scope="module", params=["session", "transaction"])
def seen(request: pytest.FixtureRequest, make_site: MakeSite) -> Any:
    """What was seen in a site with its counters."""
    found = make_site("django-prometheus", max_size=4, pool_mode=request.param).call(look)
    return {"mode": request.param, **found}


def test_statements_checkouts_and_errors_are_counted(seen: Any) -> None:
    # It counts each row of executemany() as a statement.
    checkouts = {"session": 1, "transaction": 3}[seen["mode"]]
    assert seen["counted"] == {
        "execute": 4, "executemany": 2, "connections": checkouts, "errors": 1
    }  # fmt: skip


def test_all_threads_share_one_pool(seen: Any) -> None:
    assert seen["threads"] == {"execute": 3, "executemany": 0, "connections": 3, "errors": 0}
    assert seen["connects"] == 1


def test_a_question_that_rides_with_a_statement_is_not_counted(seen: Any) -> None:
    assert seen["written"] == {"execute": 2, "executemany": 0, "connections": 1, "errors": 0}


def test_a_lost_answer_is_found_out_through_watched_cursors_too(seen: Any) -> None:
    assert (seen["struck"], seen["rows"]) == (1, 2)


def test_an_open_server_side_cursor_keeps_its_connection(seen: Any) -> None:
    assert seen["released"] is False


# What follows runs in the site.


def look() -> Any:
    from django.core.management import call_command
    from django.db import ProgrammingError, connection, connections
    from django_prometheus import db

    from django_pooled import registry, retry_transaction
    from django_pooled.testing import fail_next_transaction
    from tests.third_parties.notes.models import Note

    counters = {
        "execute": db.execute_total,
        "executemany": db.execute_many_total,
        "connections": db.connections_total,
        "errors": db.errors_total,
    }

    def values() -> dict[str, int]:
        return {
            name: sum(
                int(sample.value)
                for metric in counter.collect()
                for sample in metric.samples
                if sample.name.endswith("_total") and sample.labels["alias"] == "default"
            )
            for name, counter in counters.items()
        }

    def counted(work: Callable[[], object]) -> dict[str, int]:
        before = values()
        work()
        return {name: value - before[name] for name, value in values().items()}

    def query() -> None:
        Note.objects.count()
        connections.close_all()

    def three_threads() -> None:
        for _ in range(3):
            thread = threading.Thread(target=query)
            thread.start()
            thread.join()

    @retry_transaction
    def write() -> int:
        Note.objects.create(text="written")
        return Note.objects.count()

    def statements() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            cursor.executemany("SELECT %s", [[1], [2]])
            with contextlib.suppress(ProgrammingError):
                cursor.execute("SELECT nothing FROM nowhere")
        connection.close()

    call_command("migrate", verbosity=0)
    connection.close()
    found: dict[str, Any] = {"counted": counted(statements)}
    found["threads"] = counted(three_threads)
    [pool] = registry.snapshots()
    found["connects"] = pool.counters.connects
    found["written"] = counted(write)
    with fail_next_transaction(None, phase="answer") as fault:
        found["rows"] = write()
    found["struck"] = fault.struck
    rows = iter(Note.objects.iterator(chunk_size=1))
    next(rows)
    found["released"] = connection.release()  # type: ignore[attr-defined]
    del rows
    return found

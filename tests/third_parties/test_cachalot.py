"""django-cachalot: it caches, and an attempt that was rolled back leaves nothing in its cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.third_parties.conftest import MakeSite

pytest.importorskip("cachalot", reason="django-cachalot is not installed")


@pytest.fixture(scope="module")
def seen(make_site: MakeSite) -> Any:
    """What was seen in a site with its cache."""
    return make_site("django-cachalot").call(look)


def test_it_answers_a_second_time_without_a_query_until_something_is_written(seen: Any) -> None:
    assert seen["read"] == [[1, 0], [0, 0], [1, 1]]


def test_what_an_attempt_saw_before_it_was_rolled_back_is_not_in_the_cache(seen: Any) -> None:
    assert seen["restarted"] == [1, 2]


def test_a_commit_without_answer_makes_what_was_cached_out_of_date(seen: Any) -> None:
    assert seen["lost"] == [1, 3]


# What follows runs in the site.


def look() -> Any:
    from django.core.management import call_command
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    from django_pooled import retry_transaction
    from django_pooled.testing import fail_next_transaction
    from tests.third_parties.notes.models import Note

    def counted(read: Callable[[], int]) -> list[int]:
        """Return how many queries it took, and what they said."""
        with CaptureQueriesContext(connection) as queries:
            answer = read()
        return [len(queries), answer]

    def read() -> int:
        return Note.objects.count()

    @retry_transaction
    def write() -> int:
        Note.objects.create(text="written")
        return Note.objects.count()

    call_command("migrate", verbosity=0)
    found: dict[str, Any] = {"read": [counted(read), counted(read)]}
    write()
    found["read"].append(counted(read))
    with fail_next_transaction("40001"):
        write()
    found["restarted"] = counted(read)
    with fail_next_transaction(None, phase="answer"):
        write()
    found["lost"] = counted(read)
    return found

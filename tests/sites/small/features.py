"""What pytest-django offers, used once each; run by test_pytest_django.py on both engines."""

from __future__ import annotations

import json
import threading
from functools import partial
from typing import Any
from urllib.request import urlopen

import pytest
from django.db import connections, transaction

from django_pooled.base import DatabaseWrapper
from tests.app.models import Counter, Note
from tests.support.pools import fill

ROW = "from a migration"


def names(using: str = "default") -> list[str]:
    return list(Counter.objects.using(using).order_by("id").values_list("name", flat=True))


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None, django_db_blocker: Any) -> None:
    """Add a row of the session's own to the test database, which the blocker has to allow."""
    with django_db_blocker.unblock():
        Counter.objects.update_or_create(name="of the session")


def test_without_the_mark_there_is_no_database() -> None:
    with pytest.raises(RuntimeError, match="Database access not allowed"):
        Counter.objects.count()


def test_the_blocker_allows_and_forbids(django_db_blocker: Any) -> None:
    with django_db_blocker.unblock():
        names()
        with django_db_blocker.block(), pytest.raises(RuntimeError, match="not allowed"):
            names()


@pytest.mark.parametrize("time", ["first", "second"])
def test_db_is_rolled_back(db: None, time: str) -> None:
    Counter.objects.create(name="only here")
    with transaction.atomic():
        Counter.objects.create(name="only here, too")
    assert names() == [ROW, "of the session", "only here", "only here, too"]


def test_a_failed_statement_leaves_the_next_test_a_clean_transaction(db: None) -> None:
    with connections["default"].cursor() as cursor, pytest.raises(Exception, match="zero"):
        cursor.execute("SELECT 1/0")


def test_queries_are_counted(
    db: None, django_assert_num_queries: Any, django_assert_max_num_queries: Any
) -> None:
    with django_assert_num_queries(2) as captured:
        names()
        Counter.objects.count()
    assert "app_counter" in captured.captured_queries[0]["sql"]
    with django_assert_max_num_queries(1):
        names()
    with (
        pytest.raises(pytest.fail.Exception, match="Expected to perform 1 queries"),
        django_assert_num_queries(1),
    ):
        pass


def test_callbacks_of_a_commit_are_captured(
    db: None, django_capture_on_commit_callbacks: Any
) -> None:
    called: list[str] = []
    with django_capture_on_commit_callbacks(execute=True) as callbacks:
        transaction.on_commit(partial(called.append, "done"))
    assert len(callbacks) == 1
    assert called == ["done"]


@pytest.mark.django_db(databases=["other"])
def test_only_the_named_databases_can_be_used() -> None:
    assert names("other") == [ROW]
    with pytest.raises(AssertionError, match="not allowed in this test"):
        names("default")


@pytest.mark.parametrize("time", ["first", "second"])
@pytest.mark.django_db(databases=["default", "other"])
def test_several_databases_are_rolled_back(time: str) -> None:
    for alias in ("default", "other"):
        Counter.objects.using(alias).create(name="only here")
        assert names(alias)[-1] == "only here"
        assert len(names(alias)) == (3 if alias == "default" else 2)


def test_the_client_sees_what_the_test_wrote(db: None, client: Any) -> None:
    Counter.objects.create(name="only here")
    assert client.get("/").json()["names"][-1] == "only here"
    assert client.get("/add/more/").json()["names"][-2:] == ["only here", "more"]


# Real transactions, after which the tables are emptied.


def test_transactional_db_commits_and_other_threads_see_it(transactional_db: None) -> None:
    called: list[list[str]] = []
    with transaction.atomic():
        Counter.objects.create(name="committed")
        transaction.on_commit(lambda: called.append(["hook"]))

    def look() -> None:
        called.append(names())
        connections.close_all()

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert called[0] == ["hook"]
    assert "committed" in called[1]


@pytest.mark.parametrize("time", ["first", "second"])
@pytest.mark.django_db(transaction=True)
def test_tables_are_emptied_after_real_transactions(time: str) -> None:
    # A second one of that name would be refused.
    Counter.objects.create(name="committed")


@pytest.mark.django_db(transaction=True, databases=["default", "replica", "twin"])
def test_mirror_and_twin_see_what_was_committed() -> None:
    Counter.objects.create(name="committed")
    assert "committed" in names()
    assert names("replica") == names("twin") == names()


@pytest.mark.parametrize("time", ["first", "second"])
@pytest.mark.django_db(transaction=True, reset_sequences=True)
def test_sequences_start_anew(time: str) -> None:
    assert Note.objects.create(text="first").pk == 1


@pytest.mark.parametrize("time", ["first", "second"])
@pytest.mark.django_db(transaction=True, serialized_rollback=True)
def test_rows_of_migrations_are_back_with_serialized_rollback(time: str) -> None:
    # The next test finds it again, though this one's own rows and all others' go.
    assert ROW in names()
    assert Note.objects.count() == 0
    Note.objects.create(text="committed")


def test_a_live_server_sees_the_test_s_rows_and_the_test_its(
    live_server: Any, transactional_db: None
) -> None:
    Counter.objects.create(name="of the test")
    before = names()

    def get(path: str) -> Any:
        with urlopen(f"{live_server.url}{path}") as answer:
            return json.load(answer)["names"]

    assert get("/") == before
    threads = [threading.Thread(target=get, args=[f"/add/{n}/"]) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(names()) == sorted([*map(str, range(8)), *before])
    assert get("/") == names()


@pytest.mark.django_db(transaction=True, databases="__all__")
def test_sessions_stay_idle_until_the_end() -> None:
    # The databases are dropped, or kept, with these still there.
    for wrapper in connections.all():
        if isinstance(wrapper, DatabaseWrapper) and wrapper.pool is not None:
            fill(wrapper.pool, 4)

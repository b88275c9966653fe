"""Comments that name the view or task: what the server sees, and what goes on as without them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pytest
from asgiref.sync import sync_to_async
from django.core.exceptions import ImproperlyConfigured
from django.db import connections, transaction
from django.db.utils import load_backend
from django.http import HttpResponse
from django.test import AsyncClient, Client
from django.urls import path
from psycopg import sql

from django_pooled import retry_transaction
from django_pooled.activity import current
from django_pooled.backend.options import parse
from django_pooled.backend.sql_comments import comment_of
from django_pooled.naming import name_celery_tasks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django.http import HttpRequest
    from pytest_django import Settings

    from embedded_postgres import EmbeddedServer
    from tests.support.pools import MakeDatabase

HERE = "tests.integration.backend.test_sql_comments"
OWN_TEXT = "SELECT query FROM pg_stat_activity WHERE pid = pg_backend_pid()"


@pytest.fixture
def commented(server: EmbeddedServer, make_database: MakeDatabase) -> str:
    """The alias of a database whose statements are commented."""
    return make_database(server, sql_comments="shop")


@pytest.fixture
def busy() -> Iterator[Callable[[str], None]]:
    """Say what the running code is for."""
    token = current.set(None)

    def say(name: str) -> None:
        current.set(name)

    yield say
    current.reset(token)


def value(alias: str, statement: Any, parameters: Any = None) -> Any:
    with connections[alias].cursor() as cursor:
        cursor.execute(statement, parameters)
        return cursor.fetchone()[0]


# The text


def test_keys_are_in_order_and_values_encoded_and_quoted() -> None:
    assert comment_of("shop", "votes.views.cast") == " /*app='shop',view='votes.views.cast'*/"
    assert comment_of("my shop", None) == " /*app='my%20shop'*/"
    assert comment_of(None, "celery votes.count") == " /*task='votes.count'*/"
    assert comment_of(None, "manage.py loaddata") == " /*command='loaddata'*/"
    assert comment_of(None, None) == ""


def test_no_name_can_leave_the_comment() -> None:
    hostile = "*/; DROP TABLE votes; -- ' \\' %s /* (é)"
    comment = comment_of(hostile, hostile)
    inside = comment.removeprefix(" /*").removesuffix("*/")
    assert set(inside) <= set(
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789'=,%-._"
    )
    assert [unquote(pair.split("=")[1].strip("'")) for pair in inside.split(",")] == [hostile] * 2


@pytest.mark.parametrize("wrong", [1, "", None, ["shop"]])
def test_the_option_is_a_flag_or_a_name(wrong: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match="the application's name"):
        parse("default", {"OPTIONS": {"pool": {"sql_comments": wrong}}})


# What the server sees


def test_each_statement_names_what_it_is_run_for(
    commented: str, busy: Callable[[str], None]
) -> None:
    assert value(commented, OWN_TEXT) == f"{OWN_TEXT} /*app='shop'*/"
    busy("votes.views.cast")
    assert value(commented, OWN_TEXT) == f"{OWN_TEXT} /*app='shop',view='votes.views.cast'*/"


def test_without_a_name_for_the_application_there_is_only_the_view(
    server: EmbeddedServer, make_database: MakeDatabase, busy: Callable[[str], None]
) -> None:
    alias = make_database(server, sql_comments=True)
    assert value(alias, OWN_TEXT) == OWN_TEXT
    busy("votes.views.cast")
    assert value(alias, OWN_TEXT) == f"{OWN_TEXT} /*view='votes.views.cast'*/"


@pytest.mark.parametrize("pool", [{"sql_comments": False}, {}])
def test_without_the_option_nothing_is_asked_of_a_statement(
    server: EmbeddedServer,
    make_database: MakeDatabase,
    busy: Callable[[str], None],
    pool: dict[str, Any],
) -> None:
    alias = make_database(server, **pool)
    busy("votes.views.cast")
    assert connections[alias].execute_wrappers == []
    assert value(alias, OWN_TEXT) == OWN_TEXT


def test_parameters_and_percent_signs_stay_what_they_are(
    commented: str, busy: Callable[[str], None]
) -> None:
    busy("100 %s")
    comment = "/*app='shop',view='100%20%25s'*/"
    assert value(commented, "SELECT '5 %s'") == "5 %s"
    assert value(commented, "SELECT '5 %%' || %s", ["'*/ %s"]) == "5 %'*/ %s"
    assert value(commented, "SELECT '5 %%'", []) == "5 %"
    assert value(commented, f"{OWN_TEXT} AND 1 = %s", [1]) == f"{OWN_TEXT} AND 1 = 1 {comment}"


@pytest.mark.parametrize(
    "statement", [f"{OWN_TEXT} -- mine", f"/* mine */ {OWN_TEXT}", sql.SQL(OWN_TEXT)]
)
def test_a_statement_with_a_comment_or_made_of_parts_stays_as_it_is(
    commented: str, busy: Callable[[str], None], statement: Any
) -> None:
    busy("votes.views.cast")
    expected = statement if isinstance(statement, str) else OWN_TEXT
    assert value(commented, statement) == expected


def test_a_semicolon_at_the_end_does_no_harm(commented: str, busy: Callable[[str], None]) -> None:
    busy("votes.views.cast")
    assert value(commented, f"{OWN_TEXT};").startswith(f"{OWN_TEXT}; /*app=")


def test_a_server_side_cursor_is_commented(commented: str, busy: Callable[[str], None]) -> None:
    busy("votes.views.cast")
    with transaction.atomic(commented), connections[commented].chunked_cursor() as rows:
        rows.execute("SELECT generate_series(1, %s)", [3])
        declared = value(commented, "SELECT statement FROM pg_cursors")
        assert rows.fetchall() == [(1,), (2,), (3,)]
    assert declared.endswith(
        "FOR SELECT generate_series(1, 3) /*app='shop',view='votes.views.cast'*/"
    )


def test_executemany_and_copy_go_on_working(commented: str, busy: Callable[[str], None]) -> None:
    busy("100 %")
    with transaction.atomic(commented), connections[commented].cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE pairs (one int, two text) ON COMMIT DROP")
        cursor.executemany("INSERT INTO pairs VALUES (%s, %s)", [(1, "%"), (2, "--")])
        with cursor.copy("COPY pairs FROM STDIN") as copy:
            copy.write_row((3, "/*"))
        cursor.execute("SELECT array_agg(two ORDER BY one) FROM pairs")
        assert cursor.fetchone() == (["%", "--", "/*"],)


def test_a_prepared_statement_is_prepared_once_for_each_view(
    server: EmbeddedServer, make_database: MakeDatabase, busy: Callable[[str], None]
) -> None:
    alias = make_database(
        server,
        options={"server_side_binding": True, "prepare_threshold": 1},
        sql_comments=True,
    )
    for view in ("votes.views.cast", "votes.views.page") * 3:
        busy(view)
        assert value(alias, "SELECT 1 + %s", [1]) == 2
    prepared = value(
        alias,
        "SELECT array_agg(statement ORDER BY statement) FROM pg_prepared_statements "
        "WHERE statement LIKE 'SELECT 1%%'",
        [],
    )
    assert prepared == [
        "SELECT 1 + $1 /*view='votes.views.cast'*/",
        "SELECT 1 + $1 /*view='votes.views.page'*/",
    ]


def test_the_server_counts_a_statement_as_the_same_whatever_its_comment(
    server: EmbeddedServer, make_database: MakeDatabase, busy: Callable[[str], None]
) -> None:
    alias = make_database(server, options={"options": "-c compute_query_id=on"}, sql_comments=True)
    own_id = "SELECT query_id FROM pg_stat_activity WHERE pid = pg_backend_pid()"
    found = []
    for view in ("votes.views.cast", "votes.views.page"):
        busy(view)
        found.append(value(alias, own_id))
    assert found[0] == found[1] is not None


@pytest.mark.parametrize("pool_mode", ["session", "transaction"])
def test_the_question_for_a_transactions_id_rides_behind_the_comment(
    server: EmbeddedServer,
    make_database: MakeDatabase,
    busy: Callable[[str], None],
    pool_mode: str,
) -> None:
    alias = make_database(server, sql_comments="shop", pool_mode=pool_mode)
    busy("votes.views.cast")

    @retry_transaction(using=alias)
    def write() -> tuple[Any, Any]:
        with connections[alias].cursor() as cursor:
            cursor.execute("CREATE TABLE noted AS SELECT %s AS text", ["100 %"])
            cursor.execute("UPDATE noted SET text = text || '!' RETURNING text")
            text = cursor.fetchone()[0]
            cursor.execute("DROP TABLE noted")
            cursor.execute("SELECT pg_current_xact_id_if_assigned()::text")
            actual = cursor.fetchone()[0]
        return text, connections[alias].connection.observer.identity.xid == actual

    assert write() == ("100 %!", True)


# Who names it


def ask(request: HttpRequest, alias: str) -> HttpResponse:
    return HttpResponse(value(alias, OWN_TEXT).removeprefix(OWN_TEXT))


async def ask_async(request: HttpRequest, alias: str) -> HttpResponse:
    return HttpResponse((await sync_to_async(value)(alias, OWN_TEXT)).removeprefix(OWN_TEXT))


def run_task(request: HttpRequest, alias: str) -> HttpResponse:
    from celery import Celery  # type: ignore[import-untyped,unused-ignore]

    def run(depth: int) -> list[str]:
        below = count.apply([depth - 1]).get(disable_sync_subtasks=False) if depth else []
        return [*below, str(current.get())]

    count = Celery(set_as_current=False).task(name="votes.count")(run)
    names = count.apply([1]).get(disable_sync_subtasks=False)
    return HttpResponse(",".join([*names, str(current.get())]))


urlpatterns = [
    path("ask/<alias>", ask),
    path("async/<alias>", ask_async),
    path("task/<alias>", run_task),
]


@pytest.fixture
def site(settings: Settings) -> None:
    """A site with the middleware."""
    settings.ROOT_URLCONF = HERE
    settings.MIDDLEWARE = ["django_pooled.naming.NameViewMiddleware"]


@pytest.mark.parametrize("view", ["ask", "async"])
def test_a_request_names_its_view_and_leaves_nothing_behind(
    commented: str, site: None, view: str
) -> None:
    name = {"ask": "ask", "async": "ask_async"}[view]
    expected = f" /*app='shop',view='{HERE}.{name}'*/"
    assert Client().get(f"/{view}/{commented}").content.decode() == expected
    assert current.get() is None

    async def request() -> str:
        response = await AsyncClient().get(f"/{view}/{commented}")
        assert current.get() is None
        await sync_to_async(connections.close_all)()
        return str(response.content.decode())

    assert asyncio.run(request()) == expected


def test_a_task_is_named_and_the_view_that_runs_it_keeps_its_name(
    commented: str, site: None
) -> None:
    pytest.importorskip("celery", reason="celery is not installed")
    from celery import signals

    name_celery_tasks()
    name_celery_tasks()
    try:
        response = Client().get(f"/task/{commented}")
    finally:
        for signal in (signals.task_prerun, signals.task_postrun):
            assert signal.disconnect(dispatch_uid="django_pooled.naming")
    assert response.content.decode().split(",") == [
        "celery votes.count",
        "celery votes.count",
        f"{HERE}.run_task",
    ]


def test_a_backend_without_a_pool_has_no_comments() -> None:
    wrapper = load_backend("django_pooled").DatabaseWrapper
    assert wrapper({"OPTIONS": {"pool": False}}, "unpooled").execute_wrappers == []

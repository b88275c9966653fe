"""What is used of Django's private parts is as it was; a failure here names what to look at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from django.core.handlers.base import BaseHandler
from django.db import connections, transaction
from django.http import HttpResponse
from django.test import TestCase

from django_pooled.backend.django_private import is_block_of_test_case
from django_pooled.backend.non_atomic import never_atomic, non_atomic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django.http import HttpRequest

    View = Callable[[HttpRequest], HttpResponse]


def view(request: HttpRequest) -> HttpResponse:
    return HttpResponse()


@pytest.fixture
def blocks_around(monkeypatch: pytest.MonkeyPatch) -> Callable[[View], set[str | None]]:
    """The databases in which Django's handler would open a transaction around a view."""

    def found(view: View) -> set[str | None]:
        aliases = {"default", "ledger"}
        for alias in aliases:
            entry = {**connections.settings["default"], "ATOMIC_REQUESTS": True}
            monkeypatch.setitem(connections.settings, alias, entry)
        wrapped: Any = BaseHandler().make_view_atomic(view)
        opened: set[str | None] = set()
        while wrapped is not view:
            [block] = [
                cell.cell_contents
                for cell in wrapped.__closure__
                if isinstance(cell.cell_contents, transaction.Atomic)
            ]
            opened.add(block.using)
            wrapped = wrapped.__wrapped__
        return opened

    return found


def test_the_handler_opens_a_transaction_around_a_view_in_each_database(
    blocks_around: Callable[[View], set[str | None]],
) -> None:
    assert blocks_around(view) == {"default", "ledger"}


def test_the_handler_opens_none_around_a_view_that_is_never_atomic(
    blocks_around: Callable[[View], set[str | None]],
) -> None:
    assert blocks_around(never_atomic(lambda request: HttpResponse())) == set()


def test_the_handler_leaves_out_one_database_and_those_of_the_view_within(
    blocks_around: Callable[[View], set[str | None]],
) -> None:
    def outer(request: HttpRequest) -> HttpResponse:
        return view(request)

    assert blocks_around(non_atomic(outer, "default", view)) == {"ledger"}
    marked = transaction.non_atomic_requests(using="ledger")(lambda request: HttpResponse())
    assert blocks_around(non_atomic(outer, "default", marked)) == set()
    # The mark of the view within is its own.
    assert blocks_around(marked) == {"default"}
    assert blocks_around(non_atomic(outer, "default", never_atomic(lambda _: None))) == set()


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch, django_db_blocker: Any) -> Iterator[str]:
    """A database of SQLite in memory."""
    entry = {**connections.settings["default"], "OPTIONS": {}}
    entry |= {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
    monkeypatch.setitem(connections.settings, "memory", entry)
    with django_db_blocker.unblock():
        yield "memory"
        connections["memory"].connection.close()
    del connections["memory"]


def test_the_blocks_of_a_test_case_are_told_from_others(memory: str) -> None:
    class Case(TestCase):
        databases = {memory}

        def test(self) -> None:
            with transaction.atomic(using=memory):
                found.extend(map(is_block_of_test_case, connections[memory].atomic_blocks))

    found: list[bool] = []
    result = Case("test").defaultTestResult()
    Case.setUpClass()
    try:
        Case("test")(result)
    finally:
        Case.doClassCleanups()
        Case.tearDownClass()
    assert (result.errors, result.failures) == ([], [])
    assert found == [True, True, False]

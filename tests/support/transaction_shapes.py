"""Transactions as applications write them, with the round trips that each is to take."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from django.db import connections
from django.db.transaction import atomic

from django_pooled import retry_transaction
from tests.app.models import Counter

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.servers.fault_proxy import FaultProxy

__all__ = ["SHAPES", "Shape", "count", "prepare"]

NEW_ROWS = "a new row of the shape"


class Shape(NamedTuple):
    """A transaction on the database of an alias, in one thread."""

    run: Callable[[str], Any]
    on_django: int
    """Round trips on Django's engine, which has ``atomic`` where this package has a decorator."""
    goal: int
    """Round trips on this engine."""


def _write(alias: str) -> None:
    Counter.objects.using(alias).filter(name="shapes").update(value=1)


def _read(alias: str) -> None:
    Counter.objects.using(alias).get(name="shapes")


def _nothing(alias: str) -> None:
    pass


def _read_and_write(alias: str) -> None:
    _read(alias)
    _write(alias)


def _nested_writes(alias: str) -> None:
    for _ in range(3):
        with atomic(using=alias):
            _write(alias)


def _gets_or_creates(alias: str) -> None:
    for number in range(3):
        Counter.objects.using(alias).get_or_create(name=f"{NEW_ROWS} {number}")


def _atomic(function: Callable[[str], None]) -> Callable[[str], None]:
    def run(alias: str) -> None:
        with atomic(using=alias):
            function(alias)

    return run


def _decorated(function: Callable[[str], None]) -> Callable[[str], None]:
    @cache
    def made_for(alias: str) -> Callable[[str], None]:
        # Once, as an application has it.
        if connections[alias].settings_dict["ENGINE"] == "django.db.backends.postgresql":
            return _atomic(function)
        return retry_transaction(using=alias)(function)

    return lambda alias: made_for(alias)(alias)


SHAPES = {
    "atomic, 1 write": Shape(_atomic(_write), 3, 2),
    "atomic, 1 read": Shape(_atomic(_read), 3, 2),
    "atomic, read + write": Shape(_atomic(_read_and_write), 4, 3),
    "atomic without a statement": Shape(_atomic(_nothing), 0, 0),
    "atomic, 3 nested atomic with 1 write": Shape(_atomic(_nested_writes), 11, 4),
    "atomic, 3 get_or_create (new rows)": Shape(_atomic(_gets_or_creates), 14, 7),
    "decorated, 1 write (the commit check included)": Shape(_decorated(_write), 3, 2),
    "decorated, 1 read": Shape(_decorated(_read), 3, 2),
    "decorated, 3 nested writes": Shape(_decorated(_nested_writes), 11, 4),
}


def prepare(alias: str) -> None:
    """Have the rows that the shapes need, and none of those that they make."""
    Counter.objects.using(alias).get_or_create(name="shapes")
    Counter.objects.using(alias).filter(name__startswith=NEW_ROWS).delete()


def count(shape: Shape, alias: str, proxy: FaultProxy) -> int:
    """Return the round trips of a shape on a connection that has run it before."""
    for _ in range(2):
        prepare(alias)
        before = proxy.round_trips()
        shape.run(alias)
        after = proxy.round_trips()
    return after - before

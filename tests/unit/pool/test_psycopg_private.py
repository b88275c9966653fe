"""What is used of psycopg's private parts is as it was; a failure here names what to look at."""

from __future__ import annotations

import inspect
from typing import Any

import psycopg
import pytest
from psycopg import Pipeline, _connection_base, _cursor_base, generators
from psycopg import transaction as psycopg_transaction

from django_pooled.pool import psycopg_pipeline, psycopg_private

HOMES: dict[str, Any] = {
    "BaseConnection": _connection_base.BaseConnection,
    "BaseCursor": _cursor_base.BaseCursor,
    "BasePipeline": Pipeline.__mro__[1],
    # Its module has another name before psycopg 3.3.
    "ServerCursorMixin": next(
        kind for kind in psycopg.ServerCursor.__mro__ if kind.__name__ == "ServerCursorMixin"
    ),
    "BaseTransaction": psycopg_transaction.BaseTransaction,
    # Ours, by which statements are sent along with others.
    "CarryingConnection": psycopg_pipeline.CarryingConnection,
    "CarryingCursor": psycopg_pipeline.CarryingCursor,
}


NAMES = (
    psycopg_private.SILENT
    | psycopg_private.SAVEPOINTS
    | psycopg_private._FETCHES
    | psycopg_private._ENDS
    | psycopg_private._BEGINS
)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_psycopg_still_waits_for_generators_of_these_names(name: str) -> None:
    home, _, method = name.rpartition(".")
    found = getattr(HOMES[home], method) if home else getattr(generators, method)
    assert found.__qualname__ == name


def test_psycopgs_cursors_wait_by_their_connection_alone() -> None:
    for kind in (psycopg.Cursor, psycopg.ServerCursor, psycopg.Copy, psycopg.Transaction):
        for name, method in inspect.getmembers(kind, inspect.isfunction):
            assert "waiting." not in inspect.getsource(method), f"{kind.__name__}.{name}"


@pytest.mark.parametrize(
    ("given", "seconds"), [(7, 7.0), ("7", 7.0), (7.9, 7.0), (1, 2.0), (0, 130.0), (None, 130.0)]
)
def test_the_time_limit_of_a_connect_is_psycopg_s(
    given: Any, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PGCONNECT_TIMEOUT", raising=False)
    assert psycopg_private.connect_timeout_of({"connect_timeout": given}) == seconds


def test_a_time_limit_in_the_environment_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "5")
    assert psycopg_private.connect_timeout_of({"connect_timeout": None}) == 5.0


def test_a_time_limit_that_is_none_is_refused() -> None:
    with pytest.raises(psycopg.ProgrammingError, match="bad value for connect_timeout: 'soon'"):
        psycopg_private.connect_timeout_of({"connect_timeout": "soon"})

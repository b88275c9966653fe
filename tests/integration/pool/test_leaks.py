"""What is in use for longer than leak_after is logged when it is due, with the project's lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.support.waiting import wait_until

if TYPE_CHECKING:
    import logging

    import pytest

    from embedded_postgres import EmbeddedServer
    from tests.support.pools import MakeDatabase, MakePool


def held(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [r for r in caplog.records if getattr(r, "event", None) == "connection_held"]


def test_a_leak_is_logged_though_nobody_waits_and_it_never_comes_back(
    server: EmbeddedServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool(server, max_size=4, leak_after=0.2)
    connection = pool.checkout()
    wait_until(lambda: held(caplog))
    [first] = held(caplog)
    assert first.seconds >= 0.2  # type: ignore[attr-defined]
    wait_until(lambda: len(held(caplog)) == 3)
    times = [record.seconds for record in held(caplog)]  # type: ignore[attr-defined]
    assert times[1] >= 0.4
    assert times[2] >= 0.8
    pool.checkin(connection)
    assert len(held(caplog)) == 3


def test_each_leak_is_logged_by_itself_and_a_short_use_never(
    server: EmbeddedServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool(server, max_size=4, leak_after=0.3)
    leaks = [pool.checkout(), pool.checkout()]
    for _ in range(20):
        pool.checkin(pool.checkout())
    wait_until(lambda: len(held(caplog)) == 2)
    lines = {record.where for record in held(caplog)}  # type: ignore[attr-defined]
    assert len(lines) == 1
    for connection in leaks:
        pool.checkin(connection)


def test_the_stack_of_a_leak_has_the_projects_own_lines_alone(
    server: EmbeddedServer, make_database: MakeDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    from django.db import connections

    alias = make_database(server, leak_after=0.1)

    def view_that_leaks() -> Any:
        return model_of_the_project()

    def model_of_the_project() -> Any:
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT 1")

    view_that_leaks()
    wait_until(lambda: held(caplog))
    connections[alias].close()
    text = held(caplog)[0].getMessage()
    assert text.index("in view_that_leaks") < text.index("in model_of_the_project")
    assert "with connections[alias].cursor() as cursor:" in text
    for library in ("/django/", "/django_pooled/", "/_pytest/", "/pluggy/"):
        assert library not in text

"""``OPTIONS["pool"] = False``: connections as Django's own backend has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import psycopg
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import close_old_connections, connections

from django_pooled import DeadlineExceeded, deadline, registry, retry_transaction
from django_pooled.base import DatabaseWrapper
from django_pooled.testing import fail_next_transaction, no_waiting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from embedded_postgres import EmbeddedServer
    from tests.support.pools import MakeDatabase


@pytest.fixture
def unpooled(server: EmbeddedServer, make_database: MakeDatabase) -> Iterator[DatabaseWrapper]:
    """The wrapper of a database without a pool."""
    alias = make_database(server)
    connections.settings[alias]["OPTIONS"]["pool"] = False
    wrapper = connections[alias]
    assert isinstance(wrapper, DatabaseWrapper)
    yield wrapper
    wrapper.close()
    with psycopg.connect(**server.parameters("postgres"), autocommit=True) as admin:
        admin.execute("DROP TABLE IF EXISTS unpooled_note")


def ask(wrapper: DatabaseWrapper, statement: str) -> Any:
    with wrapper.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchone()[0]


def test_no_pool_is_made(unpooled: DatabaseWrapper) -> None:
    ask(unpooled, "SELECT 1")
    assert unpooled.pool is None
    assert unpooled.alias not in {pool.alias for pool in registry.snapshots()}


def test_what_geventpool_left_beside_it_is_refused(unpooled: DatabaseWrapper) -> None:
    # Its documentation has "pool": False beside its own options.
    unpooled.settings_dict["OPTIONS"]["MAX_CONNS"] = 20
    with pytest.raises(ImproperlyConfigured, match="option of django-db-geventpool"):
        ask(unpooled, "SELECT 1")


def test_the_end_of_a_request_closes_the_session(
    unpooled: DatabaseWrapper, server: EmbeddedServer
) -> None:
    pid = ask(unpooled, "SELECT pg_backend_pid()")
    close_old_connections()
    assert unpooled.connection is None
    assert ask(unpooled, "SELECT pg_backend_pid()") != pid


def test_a_connection_is_kept_and_checked_as_settings_say(unpooled: DatabaseWrapper) -> None:
    unpooled.settings_dict["CONN_MAX_AGE"] = None
    unpooled.settings_dict["CONN_HEALTH_CHECKS"] = True
    pid = ask(unpooled, "SELECT pg_backend_pid()")
    close_old_connections()
    with patch.object(unpooled, "is_usable", wraps=unpooled.is_usable) as is_usable:
        assert ask(unpooled, "SELECT pg_backend_pid()") == pid
    assert is_usable.call_count == 1


def test_autocommit_can_be_off_from_the_start(unpooled: DatabaseWrapper) -> None:
    unpooled.settings_dict["AUTOCOMMIT"] = False
    ask(unpooled, "SELECT 1")
    assert not unpooled.get_autocommit()
    unpooled.rollback()


def test_a_wrong_isolation_level_is_refused_in_django_s_words_and_with_its_place(
    unpooled: DatabaseWrapper,
) -> None:
    unpooled.settings_dict["OPTIONS"]["isolation_level"] = -1
    with pytest.raises(ImproperlyConfigured) as refused:
        unpooled.connect()
    assert "Invalid transaction isolation level -1 specified." in str(refused.value)
    assert f"DATABASES[{unpooled.alias!r}]['OPTIONS']['isolation_level']" in str(refused.value)


def test_transactions_are_restarted_and_lost_commits_resolved_all_the_same(
    unpooled: DatabaseWrapper,
) -> None:
    with unpooled.cursor() as cursor:
        cursor.execute("CREATE TABLE unpooled_note (attempt int)")
    attempts = 0

    @retry_transaction(using=unpooled.alias)
    def work() -> int:
        nonlocal attempts
        attempts += 1
        with unpooled.cursor() as cursor:
            cursor.execute("INSERT INTO unpooled_note VALUES (%s)", [attempts])
        return attempts

    with (
        fail_next_transaction(None, using=unpooled.alias) as before_commit,
        fail_next_transaction(None, phase="answer", using=unpooled.alias) as after_commit,
        no_waiting(),
    ):
        assert work() == 2
    assert (before_commit.struck, after_commit.struck) == (1, 1)
    assert ask(unpooled, "SELECT array_agg(attempt)::text FROM unpooled_note") == "{2}"


def test_a_deadline_holds_without_a_pool_too(unpooled: DatabaseWrapper) -> None:
    pid = ask(unpooled, "SELECT pg_backend_pid()")
    with pytest.raises(DeadlineExceeded), deadline(0.3):
        ask(unpooled, "SELECT pg_sleep(60)")
    assert ask(unpooled, "SELECT pg_backend_pid()") == pid

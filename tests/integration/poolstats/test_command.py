"""manage.py poolstats: run as an operator runs it, beside processes and servers in trouble."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from django.core.management import CommandError, call_command
from django.test import override_settings

from django_pooled.backend.parameters import server_of
from django_pooled.backend.site import this_site
from django_pooled.poolstats.overview import Overview
from django_pooled.poolstats.processes.collect import Collection
from django_pooled.poolstats.server.view import ServerView
from django_pooled.stats.names import session_name
from django_pooled.stats.snapshot import process_report
from tests.servers.postgresql import backend_count
from tests.support.publisher import Publisher, snapshot
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django_pooled.poolstats.findings.finding import Finding, Level
    from embedded_postgres import EmbeddedServer
    from tests.servers.fault_proxy import FaultProxy

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no Unix sockets")

ROOT = Path(__file__).resolve().parents[3]

SETTINGS = """
import json, os
SECRET_KEY = "only for tests"
INSTALLED_APPS = ["django_pooled"]
PASSWORD = os.environ["SITE_PASSWORD"]
DATABASES = json.loads(os.environ["SITE_DATABASES"])
for database in DATABASES.values():
    if database.get("PASSWORD") == "callable":
        database["PASSWORD"] = lambda: PASSWORD
"""


class Site:
    """A settings module, the processes that publish under it, and its manage.py poolstats."""

    def __init__(self, folder: Path, server: EmbeddedServer) -> None:
        self.folder = folder
        self.password = server.password
        self.databases = {
            "default": self.database(server.django_settings()),
            "cache": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"},
        }
        (folder / "site_settings.py").write_text(SETTINGS, encoding="utf-8")
        self.publishers: list[Publisher] = []

    def database(self, address: dict[str, Any], **pool: Any) -> dict[str, Any]:
        options = {"pool": {"stats_dir": str(self.folder), **pool}}
        return {"ENGINE": "django_pooled", "OPTIONS": options, **address}

    def publish(self, *pools: dict[str, Any]) -> Publisher:
        """Start a process with pools of this site, unless they are said to be of another."""
        own = {"server": self.server_of_default, "site": self.key}
        self.publishers.append(Publisher(self.folder, *[{**own, **pool} for pool in pools or [{}]]))
        return self.publishers[-1]

    @property
    def server_of_default(self) -> str:
        return server_of({"HOST": "", "PORT": "", "NAME": "", **self.databases["default"]})

    @property
    def key(self) -> str:
        """What tells the site from others."""
        with override_settings(SECRET_KEY="only for tests"):
            return this_site().key

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "site_settings",
            "PYTHONPATH": f"{self.folder}{os.pathsep}{ROOT}",
            "SITE_DATABASES": json.dumps(self.databases),
            "SITE_PASSWORD": self.password,
            "COLUMNS": "100",
        }

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "django", "poolstats", *arguments]

    def poolstats(self, *arguments: str, code: int = 0) -> str:
        """Run the command, expect its exit code and no stack trace, and return what it printed."""
        done = subprocess.run(
            self.command(*arguments),
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        output = done.stdout + done.stderr
        assert done.returncode == code, output
        assert "Traceback" not in output
        return output

    def json(self, *arguments: str, code: int = 0) -> Any:
        return json.loads(self.poolstats("--format", "json", *arguments, code=code))

    def close(self) -> None:
        for publisher in self.publishers:
            publisher.close()


@pytest.fixture(scope="module")
def server(private_server: EmbeddedServer) -> EmbeddedServer:
    """A server on which nobody else has sessions, since they are counted."""
    return private_server


@pytest.fixture
def site(server: EmbeddedServer) -> Iterator[Site]:
    """A site that publishes in a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="stats-", dir="/tmp"))
    made = Site(folder, server)
    yield made
    made.close()
    shutil.rmtree(folder)


def sentences(found: list[Finding]) -> list[tuple[Level, str]]:
    return [(finding.level, finding.sentence) for finding in found]


def overview(*pools: dict[str, Any], server: ServerView | None = None) -> Overview:
    """Return one of a single process with these pools, and an untroubled server."""
    report = process_report([snapshot(**pool) for pool in pools])
    reports = [replace(report, pid=4121, command="gunicorn")]
    healthy = ServerView("default", max_connections=100, reserved=3, used=10)
    return Overview(Collection(reports), [server or healthy], host="web-1")


# The table


def test_the_table_has_a_line_for_each_database_and_below_it_one_for_each_process(
    site: Site,
) -> None:
    site.databases["replica"] = site.databases["default"]
    first = site.publish({"in_use": 3, "idle": 1}, {"alias": "replica"})
    second = site.publish({"in_use": 2, "idle": 2})

    lines = site.poolstats().splitlines()

    at = next(n for n, line in enumerate(lines) if line.startswith("database, process")) + 1
    rows = [line.split() for line in lines[at : at + 4]]
    assert [row[:6] for row in rows] == [
        ["default,", "2", "processes", "5/20", "25%", "3"],
        [str(first.pid), "publisher.py", "3/10", "30%", "1", "0"],
        [str(second.pid), "publisher.py", "2/10", "20%", "2", "0"],
        ["replica,", str(first.pid), rows[3][2], "0/10", "0%", "1"],
    ]
    assert lines[0].endswith("2 processes answered: fine")
    assert any("connections used" in line for line in lines)


def test_the_table_fits_100_columns_whatever_the_names_and_figures(site: Site) -> None:
    site.publish(
        {"alias": "a" * 60, "in_use": 12345, "waiting": 1234567, "max_size": 99999},
        {"last_error": "no " * 100, "last_error_age": 1.0, "server": "s" * 200},
    )
    output = site.poolstats()
    assert max(map(len, output.splitlines())) <= 100


def test_only_the_database_that_was_asked_for_is_shown(site: Site) -> None:
    site.databases["replica"] = site.databases["default"]
    site.publish({}, {"alias": "replica"})
    site.publish({})
    values = site.json("--database", "replica")
    assert [[pool["alias"] for pool in one["pools"]] for one in values["processes"]] == [
        ["replica"]
    ]
    assert list(values["server"]) == ["replica"]


def test_what_a_process_reports_cant_steer_the_terminal(site: Site) -> None:
    site.publish({"alias": "\x1b[31mred", "last_error": "\x1b]0;title\x07", "last_error_age": 0.0})
    for arguments in ([], ["--check"]):
        output = site.poolstats(*arguments, code=1 if arguments else 0)
        assert "\x1b" not in output
        assert "\x07" not in output


def test_aliases_on_the_same_server_share_its_line(site: Site) -> None:
    site.databases["replica"] = site.databases["default"]
    site.publish({})
    (line,) = [line for line in site.poolstats().splitlines() if "connections used" in line]
    assert '"default", "replica"' in line


def test_the_connections_are_listed_when_asked_for(site: Site) -> None:
    held = {"backend_pid": 55, "age": 60.0, "state": "in use", "since": 8.2, "by": "votes.cast"}
    site.publish({"connections": [held], "in_use": 1})
    output = site.poolstats("--connections")
    assert '"default": 1 connection, 1 in use' in output
    assert "votes.cast" in output
    assert "votes.cast" not in site.poolstats()


# Other formats


def test_json_has_processes_silent_problems_and_the_server(site: Site) -> None:
    publisher, frozen = site.publish({"in_use": 1}), site.publish()
    frozen.freeze()

    values = site.json("--timeout", "0.3")

    (process,) = values["processes"]
    assert process["pid"] == publisher.pid
    assert process["command"] == "publisher.py"
    (pool,) = process["pools"]
    expected = {"alias": "default", "size": 2, "idle": 1, "in_use": 1, "waiting": 0, "max_size": 10}
    assert expected.items() <= pool.items()
    assert values["totals"][0]["in_use"] == 1
    assert values["silent"] == [frozen.pid]
    assert values["problems"] == []
    assert values["server"]["default"]["max_connections"] == 60
    assert values["server"]["default"]["free"] > 0
    assert values["status"] == "warning"
    assert str(frozen.pid) in values["findings"][0]["sentence"]


def test_prometheus_samples_are_well_formed_and_unique(site: Site) -> None:
    # Two pools of one database, as while settings change.
    publisher = site.publish(
        {"in_use": 2}, {"in_use": 3}, {"alias": 'quo"te\\', "server": "far:5432/quote"}
    )
    text = site.poolstats("--format", "prometheus")
    assert text.endswith("\n")
    sample = re.compile(r'(\w+(?:\{(?:\w+="(?:[^"\\]|\\.)*",?)*\})?) (-?[0-9.e+-]+)')
    found: dict[str, float] = {}
    for line in text.splitlines():
        if line and not line.startswith(("# HELP ", "# TYPE ")):
            match = sample.fullmatch(line)
            assert match, line
            assert match[1] not in found
            found[match[1]] = float(match[2])
    labels = f'{{database="default",pid="{publisher.pid}",server="{site.server_of_default}"}}'
    assert found[f"django_pooled_pool_in_use{labels}"] == 5
    labels = f'{{database="default",server="{site.server_of_default}"}}'
    assert found[f"django_pooled_server_up{labels}"] == 1
    kinds = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(kinds) == len(set(kinds))


# Other sites of the same user


def test_pools_of_other_sites_and_of_tests_change_nothing_and_all_shows_them(site: Site) -> None:
    ours = site.publish({"in_use": 1})
    alone = site.poolstats("--check"), site.poolstats("--format", "prometheus")
    busy = {"in_use": 10, "idle": 0, "waiting": 4}
    other = site.publish({**busy, "site": "0dd51de5", "settings": "/srv/shop/conf.py"})
    tests = site.publish({**busy, "server": "db.example:5432/test_site"})
    stopped = site.publish({**busy, "site": "0dd51de5"})
    stopped.freeze()

    assert (site.poolstats("--check"), site.poolstats("--format", "prometheus")) == alone
    values = site.json()
    assert [report["pid"] for report in values["processes"]] == [ours.pid]
    assert values["silent"] == []
    assert values["others"] == sorted([other.pid, tests.pid, stopped.pid])
    assert values["findings"] == [
        {
            "level": "fine",
            "kind": "others",
            "trouble": None,
            "sentence": "3 processes of other sites or of tests left out: --all shows them.",
        }
    ]

    output = site.poolstats("--all", "--check", code=2)
    assert "default_in_use=10%" in output
    assert "default_at_db.example_5432_test_site_in_use=100%" in output
    shop = f'"default at {site.server_of_default} of /srv/shop/conf.py"'
    assert f"4 waiters for {shop} in process {other.pid}" in output
    assert f"Process {stopped.pid} does not answer" in output


def test_a_database_that_a_process_has_added_to_its_settings_is_of_the_site(site: Site) -> None:
    site.publish({"alias": "tenant", "server": "db.example:5432/tenant"})
    (total,) = site.json()["totals"]
    assert (total["alias"], total["server"]) == ("tenant", "db.example:5432/tenant")


# Nothing there, and what is there in trouble


def test_with_nothing_running_it_says_so_and_how_to_start(site: Site) -> None:
    output = site.poolstats()
    assert "No process with an open pool was found." in output
    assert 'ENGINE = "django_pooled"' in output
    assert str(site.folder) in output
    assert "in use" not in output
    assert "connections used" in output
    assert site.poolstats("--check", code=3).startswith("UNKNOWN: ")


def test_with_publishing_off_it_says_so(site: Site) -> None:
    site.databases["default"]["OPTIONS"]["pool"]["stats_dir"] = False
    assert "stats_dir" in site.json()["problems"][0]


def test_an_unknown_database_is_refused_with_the_known_ones(site: Site) -> None:
    assert 'no database "nope". Pooled databases: default.' in site.poolstats(
        "--database", "nope", code=1
    )
    assert "does not use ENGINE" in site.poolstats("--database", "cache", code=1)
    # 1 would be a warning.
    site.poolstats("--database", "nope", "--check", code=3)


def test_an_unknown_user_is_refused(site: Site) -> None:
    assert 'no user "nobody-here"' in site.poolstats("--user", "nobody-here", code=1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("PASSWORD 'rotated'", "refuses this role's password (28P01): "),
        ("NOLOGIN", "refuses this role: "),
        ("CONNECTION LIMIT 0", "has no connection left for this role (53300): "),
        ("RENAME TO moved_clerk", ""),  # To a stranger the server tells no more than that.
    ],
)
def test_a_database_that_refuses_is_not_said_to_be_silent(
    site: Site, server: EmbeddedServer, change: str, words: str
) -> None:
    site.databases["default"].update(USER="clerk", PASSWORD="first")
    with psycopg.connect(**server.parameters("postgres"), autocommit=True) as admin:
        admin.execute("CREATE ROLE clerk LOGIN PASSWORD 'first'")
        try:
            assert "refuses" not in site.poolstats()
            admin.execute(f"ALTER ROLE clerk {change}")
            told = " ".join(site.poolstats("--check", code=2).split())
        finally:
            admin.execute("DROP ROLE IF EXISTS clerk")
            admin.execute("DROP ROLE IF EXISTS moved_clerk")
    assert f'The database "default" {words}' in told
    assert "does not answer" not in told


def test_with_the_database_away_the_processes_are_still_shown(
    site: Site, server: EmbeddedServer, proxy: FaultProxy
) -> None:
    site.databases["default"]["PORT"] = proxy.port
    publisher = site.publish({"in_use": 1})
    proxy.down()

    output = site.poolstats()

    assert str(publisher.pid) in output
    joined = " ".join(output.split())
    assert 'The database "default" does not answer: ' in joined
    assert "Connection refused" in joined
    assert site.json()["server"]["default"].keys() == {"error"}
    assert site.poolstats("--check", code=2).startswith("CRITICAL: ")


def test_a_database_that_accepts_and_says_nothing_costs_a_bounded_time(
    site: Site, proxy: FaultProxy
) -> None:
    site.databases["default"]["PORT"] = proxy.port
    site.publish()
    proxy.deaf()
    # The command itself is given a minute.
    assert site.json()["server"]["default"].keys() == {"error"}


def test_a_wrong_password_is_told_without_the_password(site: Site) -> None:
    site.databases["default"]["PASSWORD"] = "not-the-secret"
    site.publish()
    output = " ".join(site.poolstats().split())
    assert "password authentication failed" in output
    assert "not-the-secret" not in output


def test_a_password_that_is_a_callable_is_called(site: Site) -> None:
    site.databases["default"]["PASSWORD"] = "callable"
    assert site.json()["server"]["default"]["error"] is None


def test_settings_that_fail_their_checks_do_not_hide_the_pools(site: Site) -> None:
    site.databases["default"]["OPTIONS"]["pool"]["max_sise"] = 3
    site.databases["broken"] = {"ENGINE": "no.such.engine", "NAME": "x"}
    publisher = site.publish()
    values = site.json()
    assert [process["pid"] for process in values["processes"]] == [publisher.pid]
    assert "no.such.engine" in values["problems"][0]


def test_the_sites_own_pool_is_never_opened(site: Site, server: EmbeddedServer) -> None:
    site.publish()
    values = site.json()
    assert len(values["processes"]) == 1
    assert backend_count(server, "postgres", application_name="django %") == 0


def test_processes_elsewhere_are_counted_by_the_server(site: Site, server: EmbeddedServer) -> None:
    publisher = site.publish()
    host = os.uname().nodename
    names = ["django 1@web-2", "django 1@web-2", "django 2@web-2", f"django 999999@{host}"]
    with contextlib.ExitStack() as stack:
        for name in [*names, session_name(publisher.pid, host)]:
            parameters = {**server.parameters(), "application_name": name}
            stack.enter_context(psycopg.connect(**parameters))
        values = site.json()
    (note,) = [one for one in values["findings"] if "cannot reach" in one["sentence"]]
    assert note == {
        "level": "fine",
        "kind": "unreachable",
        "trouble": None,
        "sentence": "PostgreSQL sees 3 more processes that this command cannot reach "
        "(2 on web-2, 1 on this host).",
    }
    processes = {one["application_name"]: one for one in values["server"]["default"]["processes"]}
    assert processes["django 1@web-2"]["sessions"] == 2
    assert not processes["django 1@web-2"]["reached"]
    assert processes[session_name(publisher.pid, host)]["reached"]


def test_a_worker_with_a_real_pool_is_seen_with_its_waiters(
    site: Site, server: EmbeddedServer
) -> None:
    site.databases["default"] = site.database(server.django_settings(), max_size=1)
    program = """
import threading
from django.db import connection
def use():
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(60)")
for _ in range(3):
    threading.Thread(target=use, daemon=True).start()
input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", f"import django; django.setup(); {program}"],
        env=site.environment,
        stdin=subprocess.PIPE,
    ) as worker:
        try:
            wait_until(lambda: site.json()["totals"][0]["waiting"] == 2, timeout=30.0)
            # From a second on it is critical.
            wait_until(lambda: site.json()["totals"][0]["longest_waiting"] > 1.0, timeout=30.0)
            output = site.poolstats("--check", code=2)
            assert f'2 waiters for "default" in process {worker.pid}' in output
            assert "the only connection is in use" in output
            # The process that was reached is not counted again by its sessions' name.
            assert "cannot reach" not in site.poolstats()
        finally:
            worker.kill()
    assert site.json()["processes"] == []


# The exit codes


def test_check_is_0_when_all_is_well_even_if_a_pool_is_full(site: Site) -> None:
    site.publish({"in_use": 10, "idle": 0})
    status, _, data = site.poolstats("--check").partition(" | ")
    assert status == "FINE: 10 of 10 connections in use, 0 waiting"
    assert {"default_waiting=0", "default_in_use=100%"} <= set(data.split())


def test_check_is_1_for_waiters_that_get_a_connection_soon(site: Site) -> None:
    site.publish({"in_use": 4, "idle": 0, "waiting": 1, "connecting": 1})
    assert site.poolstats("--check", code=1).startswith("WARNING: ")


def test_check_is_2_for_waiters_while_all_connections_are_in_use(site: Site) -> None:
    publisher = site.publish({"in_use": 10, "idle": 0, "waiting": 4})
    status, sentence = site.poolstats("--check", code=2).splitlines()
    assert status.startswith("CRITICAL: 10 of 10 connections in use, 4 waiting | ")
    assert sentence == (
        f'4 waiters for "default" in process {publisher.pid} (publisher.py): '
        "all 10 connections are in use. [waiting]"
    )


def test_thresholds_take_the_place_of_the_rule_for_waiters(site: Site) -> None:
    site.publish({"in_use": 10, "idle": 0, "waiting": 4})
    limits = ["--warn-waiting", "5", "--critical-waiting", "9"]
    assert site.poolstats("--check", *limits).startswith("FINE: ")
    output = site.poolstats("--check", "--warn-waiting", "3", code=1)
    assert output.startswith("WARNING: ")
    assert "default_waiting=4;3 " in output
    assert '"default": waiting is 4, and --warn-waiting 3.' in output


def test_impossible_thresholds_are_refused() -> None:
    with pytest.raises(CommandError, match="--warn-waiting 9 is more than") as refused:
        call_command("poolstats", "--check", "--warn-waiting=9", "--critical-waiting=5")
    assert refused.value.returncode == 3
    for number in ("-1", "nan", "inf", "many"):
        with pytest.raises(CommandError, match="--warn-in-use"):
            call_command("poolstats", f"--warn-in-use={number}")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (
            ["--critical-in-use=90"],
            "--critical-in-use needs --check: write --check --critical-in-use 90.",
        ),
        (
            ["--watch=5", "--warn-wait-p99=1"],
            "--warn-wait-p99 needs --check: write --check --warn-wait-p99 1.",
        ),
        (
            ["--check", "--processes"],
            "--processes has no effect with --check, which prints no table",
        ),
        (["--format=json", "--connections"], "--connections has no effect with --format json, "),
        (["--since=5m", "--over=2"], "--over has no effect with --since, .*: leave it out."),
        (["--since=5m", "--connections"], "--connections has no effect with --since, "),
        (["--since=5m", "--processes"], "--processes has no effect with --since, "),
        (["--since=5m", "--format=prometheus"], ".*: write --since with --format json."),
        (["--over=2", "--format=prometheus"], ".*totals: leave it out"),
        (["--watch", "--over=2"], "--over has no effect with --watch, .*: write --watch 2."),
    ],
)
def test_options_without_effect_beside_the_others_are_refused(options: list[str], why: str) -> None:
    with pytest.raises(CommandError, match=f"^{why}"):
        call_command("poolstats", *options)


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ("--watch=-2", "argument --watch: expected seconds above 0, not '-2'"),
        ("--over=soon", "argument --over: expected seconds above 0, not 'soon'"),
        ("--since=16m", "argument --since: expected a time such as .* at most 15m, not '16m'"),
        ("--since=yesterday", "argument --since: expected a time such as 90s, 5m, .*"),
        ("--since=0", "argument --since: expected a time such as 90s, 5m, .*"),
        ("--timeout=nan", "argument --timeout: expected seconds above 0, not 'nan'"),
        ("--over=1e6", "argument --over: expected less than 86400 seconds, not '1e6'"),
        ("--warn-server=-1", "argument --warn-server: expected a number, 0 or more, not '-1'"),
    ],
)
def test_impossible_values_of_options_are_refused(option: str, why: str) -> None:
    with pytest.raises(CommandError, match=f"^Error: {why}$"):
        call_command("poolstats", option)


def test_a_threshold_for_waits_measures_them_over_some_seconds(site: Site) -> None:
    # 7 checkouts of 0.1 s each before, none meanwhile.
    site.publish({})
    limits = ["--critical-wait-p99", "0.05"]
    started = time.monotonic()
    assert site.poolstats("--check", *limits, "--over", "0.5").startswith("FINE: ")
    assert time.monotonic() - started > 0.5
    site.publish({"longest_waiting": 3.0, "waiting": 1})
    output = site.poolstats("--check", *limits, "--over", "0.1", code=2)
    assert '"default": wait-p99 is 3s, and --critical-wait-p99 0.05s.' in output


def test_counts_over_some_seconds_are_a_seconds(site: Site) -> None:
    site.publish({})
    values = site.json("--over", "0.2")
    assert 0.2 <= values["seconds"] < 20.0
    assert values["totals"][0]["checkouts"] == 0
    assert values["totals"][0]["wait"]["count"] == 0
    assert " per s fail/s " in site.poolstats("--over", "0.1")


def test_check_tells_its_status_in_json_too(site: Site) -> None:
    site.publish({"in_use": 10, "idle": 0, "waiting": 4})
    assert site.json("--check", code=2)["status"] == "critical"


def test_the_exit_codes_are_in_the_help(site: Site) -> None:
    output = site.poolstats("--help")
    for words in ("exit codes of --check", "0  fine", "1  warning", "2  critical", "3  unknown"):
        assert words in output


# Watching


def test_watch_into_a_pipe_writes_one_line_of_json_for_each_look(site: Site) -> None:
    site.publish()
    with subprocess.Popen(
        site.command("--watch", "0.1", "--format", "json"),
        env=site.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as watch:
        assert watch.stdout is not None
        for _ in range(3):
            assert len(json.loads(watch.stdout.readline())["processes"]) == 1
        watch.send_signal(signal.SIGINT)
        rest = watch.stdout.read()
        assert watch.wait(30.0) == 0
    assert "Traceback" not in rest


def test_a_reader_that_has_had_enough_ends_the_watch(site: Site) -> None:
    site.publish()
    with subprocess.Popen(
        site.command("--watch", "0.1"),
        env=site.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as watch:
        assert watch.stdout is not None
        assert watch.stderr is not None
        watch.stdout.readline()
        watch.stdout.close()
        assert watch.wait(30.0) == 0
        assert watch.stderr.read() == ""


def test_watch_and_check_exclude_each_other(site: Site) -> None:
    assert "not allowed with" in site.poolstats("--watch", "--check", code=2)

"""The page for Prometheus: sums over the site's processes that never go down."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.test import Client
from django.urls import path
from django.views.decorators.cache import never_cache
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from django_pooled import registry
from django_pooled.backend.parameters import server_of
from django_pooled.metrics import page, prometheus
from django_pooled.metrics import sums as sums_module
from django_pooled.metrics.process_exit import write_last_figures
from django_pooled.metrics.site import SitePools, SiteProcesses
from django_pooled.metrics.sums import Sums
from django_pooled.metrics.sums_file import KEPT_FOR, open_sums
from django_pooled.poolstats.prometheus import Source, as_text, of_pools
from django_pooled.poolstats.rows import PoolRow
from django_pooled.stats import answering_socket, publisher, socket_folder
from django_pooled.stats.counters import MOST_FUNCTIONS, OTHERS
from django_pooled.stats.snapshot import BOUNDS, Counters, process_report
from tests.sites.workers import running
from tests.support.publisher import Publisher, snapshot
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client import Metric
    from pytest_django import Settings

    from embedded_postgres import EmbeddedServer
    from tests.support.pools import MakeDatabase

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no Unix sockets")

HOST = socket.gethostname()
ROOT = Path(__file__).resolve().parents[3]

urlpatterns = [path("metrics", prometheus), path("wrapped", never_cache(prometheus))]

Samples = dict[str, dict[tuple[str, ...], float]]


def samples(text: str) -> Samples:
    """Return values by name and by labels, these in the order of their names."""
    found: Samples = {}
    for family in parse_text(text):
        for sample in family.samples:
            labels = tuple(sample.labels.values())
            found.setdefault(sample.name.removeprefix("django_pooled_"), {})[labels] = sample.value
    return found


def parsed_openmetrics(text: str) -> list[Metric]:
    return list(openmetrics.text_string_to_metric_families(text))  # type: ignore[no-untyped-call]


def pool(identity: str, pid: int | None = None, host: str = HOST, **counted: Any) -> PoolRow:
    """Return a pool of a process, with 7 checkouts unless told otherwise."""
    made = snapshot(id=identity)
    made = replace(made, counters=replace(made.counters, **counted))
    report = replace(process_report([made]), host=host, pid=os.getpid() if pid is None else pid)
    return PoolRow(report, made)


def look(*pools: PoolRow, silent: tuple[int, ...] = ()) -> SitePools:
    return SitePools(
        list(pools), {(row.process.host, row.process.pid) for row in pools}, set(silent)
    )


def dead_pid() -> int:
    """Return the pid of a process that is no more."""
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        pass
    return child.pid


def total(sums: Sums, seen: SitePools) -> int:
    return sum(counters.checkouts for _, _, counters in sums.figures(seen))


@pytest.fixture
def unpublished() -> Iterator[None]:
    """The test's own process, which publishes nothing before and after."""
    publisher.stop()
    yield
    publisher.stop()


@pytest.fixture
def site(
    stats_dir: Path, unpublished: None, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> SiteProcesses:
    """The site of the test's settings, with a folder of its own."""
    options = connections.settings["default"]["OPTIONS"]
    monkeypatch.setitem(options, "pool", {**options["pool"], "stats_dir": str(stats_dir)})
    # Another database than that of pools which other tests have left open.
    monkeypatch.setitem(connections.settings["default"], "HOST", "db.example")
    # Siblings may be slow where many tests run at once.
    monkeypatch.setattr(page, "TIMEOUT", 20.0)
    settings.ROOT_URLCONF = __name__
    return SiteProcesses.of_settings()


@pytest.fixture
def make_sibling(stats_dir: Path, site: SiteProcesses) -> Iterator[Callable[..., Publisher]]:
    """Start other processes of the site, each with one pool."""
    made: list[Publisher] = []
    own = {"server": server_of(connections.settings["default"]), "site": site.site.key}

    def make(**pool: Any) -> Publisher:
        made.append(Publisher(stats_dir, {**own, "id": f"sibling{len(made)}", **pool}))
        return made[-1]

    yield make
    for sibling in made:
        sibling.close()


def scrape(query: str = "", **headers: str) -> str:
    response = Client().get(f"/metrics{query}", headers=headers)
    assert response.status_code == 200
    return response.content.decode()


# Sums


def test_counters_and_gauges_are_added_up_over_processes(
    make_sibling: Callable[..., Publisher],
) -> None:
    for in_use in (1, 2):
        make_sibling(in_use=in_use)
    found = samples(scrape())
    assert found["checkouts_total"] == {("default",): 14}
    assert found["pool_in_use"] == {("default",): 3}
    assert found["checkout_wait_seconds_count"] == {("default",): 14}
    assert found["checkout_wait_seconds_sum"][("default",)] == pytest.approx(1.4)
    assert found["processes"] == {(): 3}


def test_what_a_killed_process_counted_stays_in_the_sums(
    make_sibling: Callable[..., Publisher],
) -> None:
    killed, living = make_sibling(in_use=1), make_sibling()
    before = samples(scrape())
    killed.kill()
    for _ in range(2):
        after = samples(scrape())
        assert after["checkouts_total"] == before["checkouts_total"] == {("default",): 14}
        assert after["checkout_wait_seconds_bucket"] == before["checkout_wait_seconds_bucket"]
        assert after["connections_closed_total"] == before["connections_closed_total"]
        assert after["pool_in_use"] == {("default",): 0}
        assert after["processes"] == {(): 2}
    living.close()
    assert samples(scrape())["checkouts_total"] == {("default",): 14}


def test_a_stopped_process_stays_in_the_sums_and_is_told_as_silent(
    make_sibling: Callable[..., Publisher], monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = make_sibling()
    assert samples(scrape())["checkouts_total"] == {("default",): 7}
    stopped.freeze()
    monkeypatch.setattr(page, "TIMEOUT", 0.1)
    found = samples(scrape())
    assert found["checkouts_total"] == {("default",): 7}
    assert found["silent_processes"] == {(): 1}


def test_another_site_of_the_same_user_is_left_out(
    make_sibling: Callable[..., Publisher], stats_dir: Path, site: SiteProcesses
) -> None:
    make_sibling()
    own = {"server": site.site.server("default"), "site": site.site.key}
    # One of another key on the same database, which is stopped too, and tests of this site.
    other = Publisher(stats_dir, {**own, "site": "0dd51de5"}, {"alias": "replica"})
    stopped = Publisher(stats_dir, {**own, "site": "0dd51de5"})
    stopped.freeze()
    tests = Publisher(stats_dir, {**own, "server": "db.example:5432/test_site"})
    try:
        found = samples(scrape())
        assert found["checkouts_total"] == {("default",): 7}
        # The sibling, and the one that is scraped.
        assert found["processes"] == {(): 2}
        assert found["silent_processes"] == {(): 0}
        assert samples(scrape("?by=process"))["checkouts_total"].keys() == {
            ("default", str(row.process.pid)) for row in site.ask(1.0).pools
        }
    finally:
        for process in (other, stopped, tests):
            process.close()


def test_this_processs_own_pools_are_in_the_sums_whether_it_publishes_or_not(
    site: SiteProcesses, make_sibling: Callable[..., Publisher], server: EmbeddedServer,
    make_database: MakeDatabase, stats_dir: Path,
) -> None:  # fmt: skip
    alias = make_database(server, stats_dir=False)
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT 1")
        found = samples(scrape())
        assert found["checkouts_total"] == {(alias,): 1}
        assert found["pool_in_use"] == {(alias,): 1}
        publisher.start(str(stats_dir), lambda: process_report(registry.snapshots()))
        assert samples(scrape())["checkouts_total"] == {(alias,): 1}


def test_each_process_by_itself_goes_by_its_pid(
    make_sibling: Callable[..., Publisher], site: SiteProcesses
) -> None:
    one, other = make_sibling(in_use=1), make_sibling(in_use=2)
    found = samples(scrape("?by=process"))
    assert found["pool_in_use"] == {
        ("default", str(one.pid)): 1, ("default", str(other.pid)): 2
    }  # fmt: skip


def test_a_process_of_another_container_goes_by_its_host_too(
    site: SiteProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = pool("far", pid=7, host="web-2")
    monkeypatch.setattr(SiteProcesses, "ask", lambda self, timeout: look(far, pool("near")))
    found = samples(scrape("?by=process"))
    assert found["checkouts_total"] == {
        ("default", "web-2", "7"): 7, ("default", str(os.getpid())): 7
    }  # fmt: skip


# The sums


def test_a_pool_that_its_process_closed_stays_in_the_sums() -> None:
    sums = Sums()
    for pools, sum_of_checkouts in (
        ([pool("a")], 7),
        ([pool("b", checkouts=1)], 8),
        ([pool("b", checkouts=3)], 10),
        ([], 10),
    ):
        seen = look(*pools)
        seen.answered.add((HOST, os.getpid()))
        sums.update(seen)
        assert total(sums, seen) == sum_of_checkouts
    assert sums.entries == {}


def test_a_process_that_got_the_pid_of_an_ended_one_is_another() -> None:
    sums = Sums()
    for seen in (look(pool("a", checkouts=5)), look(pool("b", checkouts=6))):
        sums.update(seen)
    assert total(sums, seen) == 11


def test_whose_look_is_written_down_late_takes_nothing_back() -> None:
    sums = Sums()
    late, early = look(pool("a", checkouts=5)), look(pool("a", checkouts=9))
    sums.update(early)
    sums.update(late)
    assert total(sums, late) == 9


def test_a_pool_is_retired_once_its_process_is_known_to_be_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gone = dead_pid()
    far = pool("far", pid=gone, host="web-2")
    reused = pool("reused", pid=os.getppid())
    sums = Sums()
    sums.update(look(pool("dead", pid=gone), pool("silent", pid=gone + 1), far, reused))
    nothing = look(silent=(gone + 1,))
    sums.update(nothing)
    assert set(sums.entries) == {"silent", "far", "reused"}
    later = time.time() + sums_module.FORGET_AFTER + 1
    monkeypatch.setattr(sums_module, "time", lambda: later)
    sums.update(nothing)
    assert set(sums.entries) == {"silent"}
    assert total(sums, nothing) == 28


def test_a_thousand_recycled_workers_leave_one_sum_behind() -> None:
    sums = Sums()
    for number in range(1000):
        seen = look(pool(str(number), checkouts=1))
        sums.update(seen)
    assert total(sums, seen) == 1000
    assert len(sums.entries) == 1
    assert len(sums.retired) == 1


def test_histograms_and_kinds_are_added_up_kind_by_kind() -> None:
    sums = Sums()
    one: dict[str, Any] = {
        "restarts": Counter({"40001": 1}),
        "restarted": Counter({("40001", "committed"): 1}),
    }
    other: dict[str, Any] = {
        "restarts": Counter({"40001": 2, "lost": 1}),
        "restarted": Counter({("lost", "failed"): 1}),
    }
    for identity, counted in (("a", one), ("b", other)):
        sums.update(look(pool(identity, **counted)))
    sums.update(SitePools(answered={(HOST, os.getpid())}))
    retired = sums.retired["default"]
    assert retired.restarts == {"40001": 3, "lost": 1}
    assert retired.restarted == {("40001", "committed"): 1, ("lost", "failed"): 1}
    assert retired.wait.count == 14
    assert retired.wait.longest == pytest.approx(0.1)


def test_a_site_whose_functions_get_new_names_has_a_bounded_number_of_series() -> None:
    sums = Sums()
    for worker in range(3):
        names = {f"view_{worker}_{number}": 1 for number in range(80)}
        sums.update(look(pool(str(worker), restarts_of=Counter(names))))
    sums.update(SitePools(answered={(HOST, os.getpid())}))
    retired = sums.retired["default"].restarts_of
    assert len(retired) == MOST_FUNCTIONS + 1
    assert retired[OTHERS] == 240 - MOST_FUNCTIONS
    assert retired["view_0_7"] == 1


# The file of the sums


def sums_file_of(stats_dir: Path, site: SiteProcesses) -> Path:
    return answering_socket.default_folder(str(stats_dir)) / f"metrics-{site.key}.json"


def kept(**odd: Any) -> bytes:
    """Return such a file with an entry in which something is odd."""
    entry: dict[str, Any] = {"alias": "default", "host": HOST, "pid": 1, "seen": 0.0}
    strange: dict[str, Any] = {key: odd.pop(key) for key in ("pid", "seen") if key in odd}
    entries = {"a": {**entry, **strange, "counts": odd}}
    content = {"version": 1, "bounds": list(BOUNDS), "entries": entries, "retired": {}}
    return json.dumps(content).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"version": 1}',
        b'{"version": 99, "bounds": []}',
        b'{"version": 1, "bounds": [1.0], "entries": {}, "retired": {}}',
        b"\xff",
        b"[" * 100_000,
        kept(checkouts=10**400),
        kept(checkouts=-1),
        kept(closed={"dead": float("nan")}),
        kept(wait={"sum": float("inf")}),
        kept(seen=10**400),
    ],
)
def test_a_file_of_sums_that_cannot_be_read_is_begun_anew(
    make_sibling: Callable[..., Publisher],
    stats_dir: Path,
    site: SiteProcesses,
    content: bytes,
    caplog: pytest.LogCaptureFixture,
) -> None:
    make_sibling()
    sums_file_of(stats_dir, site).write_bytes(content)
    with caplog.at_level(logging.DEBUG, "django_pooled.metrics"):
        assert samples(scrape())["checkouts_total"] == {("default",): 7}
    assert "started a new ledger of the metrics, since the old one cannot be read" in caplog.text
    assert json.loads(sums_file_of(stats_dir, site).read_bytes())["version"] == 1


@pytest.mark.parametrize("suffix", [".json", ".lock", ".new"])
def test_a_pipe_in_the_place_of_a_file_of_sums_holds_nobody_up(
    make_sibling: Callable[..., Publisher], stats_dir: Path, site: SiteProcesses, suffix: str
) -> None:
    make_sibling()
    os.mkfifo(sums_file_of(stats_dir, site).with_suffix(suffix))
    assert 'checkouts_total{database="default"' in scrape()


def test_an_entry_of_the_future_is_forgotten_too(stats_dir: Path, site: SiteProcesses) -> None:
    answering_socket.default_folder(str(stats_dir))
    for seen in (time.time() + 1e6, float("nan")):
        sums_file_of(stats_dir, site).write_bytes(kept(seen=seen))
        with open_sums(str(stats_dir), site.key, 1.0) as sums:
            assert sums.entries["a"].seen <= time.time()


def test_a_file_of_sums_is_read_but_not_written_while_somebody_holds_it(
    stats_dir: Path, site: SiteProcesses, caplog: pytest.LogCaptureFixture
) -> None:
    with open_sums(str(stats_dir), site.key, 1.0) as sums:
        sums.update(look(pool("a")))
    before = sums_file_of(stats_dir, site).read_bytes()
    with open(sums_file_of(stats_dir, site).with_suffix(".lock")) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with (
            caplog.at_level(logging.DEBUG, "django_pooled.metrics"),
            open_sums(str(stats_dir), site.key, 0.05) as sums,
        ):
            assert set(sums.entries) == {"a"}
            sums.update(look(pool("b")))
    assert "another process holds the ledger of the metrics" in caplog.text
    assert sums_file_of(stats_dir, site).read_bytes() == before


# Another process of the site.
WRITER = """
import os, sys
import django
django.setup()
from tests.integration.metrics.test_page import look, open_sums, pool
print("writing", flush=True)
with open_sums(sys.argv[1], sys.argv[2], 20.0) as late:
    late.update(look(pool("c"), silent=(os.getpid(),)))
"""


def test_a_file_of_sums_is_waited_for_while_somebody_writes_in_it(
    stats_dir: Path, site: SiteProcesses
) -> None:
    with open_sums(str(stats_dir), site.key, 1.0) as sums:
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(stats_dir), site.key],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"writing\n"
        sums.update(look(pool("a")))
    with child:
        assert child.wait(30.0) == 0
    with open_sums(str(stats_dir), site.key, 1.0) as sums:
        assert set(sums.entries) == {"a", "c"}


def test_files_of_sites_that_have_gone_are_swept(stats_dir: Path, site: SiteProcesses) -> None:
    home = answering_socket.default_folder(str(stats_dir))
    old, young, foreign = (
        home / name
        for name in (f"metrics-{'a' * 16}.json", f"metrics-{'b' * 16}.lock", "mine.json")
    )
    for made in (old, young, foreign):
        made.touch()
    for made in (old, foreign):
        os.utime(made, (time.time() - KEPT_FOR - 60,) * 2)
    with open_sums(str(stats_dir), site.key, 1.0):
        pass
    assert not old.exists()
    assert young.exists()
    assert foreign.exists()


def test_a_file_of_sums_is_private_and_no_symbolic_link(
    stats_dir: Path, site: SiteProcesses
) -> None:
    scrape()
    assert sums_file_of(stats_dir, site).stat().st_mode & 0o777 == 0o600
    victim = stats_dir / "victim"
    victim.touch()
    sums_file_of(stats_dir, site).with_suffix(".new").symlink_to(victim)
    assert scrape().startswith("# Not added up over processes: ")
    assert victim.read_bytes() == b""


def test_without_a_file_each_process_goes_by_itself_and_the_page_says_why(
    make_sibling: Callable[..., Publisher], stats_dir: Path, site: SiteProcesses
) -> None:
    sibling = make_sibling()
    blocked = answering_socket.default_folder(str(stats_dir)) / f"metrics-{site.key}.lock"
    blocked.mkdir()
    text = scrape()
    assert text.startswith("# Not added up over processes: [Errno 21] Is a directory")
    assert samples(text)["checkouts_total"] == {("default", str(sibling.pid)): 7}


def test_without_publishing_the_page_has_this_process_alone(
    site: SiteProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(connections.settings["default"]["OPTIONS"]["pool"], "stats_dir", False)
    text = scrape()
    assert text.startswith("# Not added up over processes: OPTIONS")
    assert samples(text)["processes"] == {(): 1}


def test_without_unix_sockets_the_page_has_this_process_alone(
    site: SiteProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket_folder, "available", lambda: False)
    text = scrape()
    assert text.startswith("# Not added up over processes: ")
    assert samples(text)["processes"] == {(): 1}


# The end of a process


def test_a_process_that_ends_writes_down_what_it_counted_since_the_last_scrape(
    site: SiteProcesses, make_database: MakeDatabase, server: EmbeddedServer, stats_dir: Path
) -> None:
    alias = make_database(server, stats_dir=False)
    scrape()

    def counted() -> Any:
        entries = json.loads(sums_file_of(stats_dir, SiteProcesses.of_settings()).read_bytes())[
            "entries"
        ]
        return {entry["alias"]: entry["counts"]["checkouts"] for entry in entries.values()}

    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT 1")
    assert counted() == {}
    write_last_figures()
    assert counted() == {alias: 1}


def test_a_process_that_ends_keeps_no_sums_for_a_site_that_nobody_scrapes(
    site: SiteProcesses, make_database: MakeDatabase, server: EmbeddedServer, stats_dir: Path
) -> None:
    write_last_figures()
    alias = make_database(server, stats_dir=False)
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT 1")
    write_last_figures()
    assert not sums_file_of(stats_dir, SiteProcesses.of_settings()).exists()


ENDING = """
import json, sys
from django.conf import settings
settings.configure(SECRET_KEY="only for tests", DATABASES=json.loads(sys.argv[1]))
import django
django.setup()
from django.db import connection
from django.test import RequestFactory
from django_pooled.metrics import prometheus
prometheus(RequestFactory().get("/"))
for _ in range(3):
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    connection.close()
"""


def test_the_last_figures_of_a_process_are_written_down_as_it_ends(
    server: EmbeddedServer, stats_dir: Path
) -> None:
    options = {"pool": {"stats_dir": str(stats_dir)}}
    database = {**server.django_settings(), "ENGINE": "django_pooled", "OPTIONS": options}
    command = [sys.executable, "-c", ENDING, json.dumps({"default": database})]
    subprocess.run(command, check=True, timeout=60.0)
    [kept_sums] = stats_dir.glob("**/metrics-*.json")
    [entry] = json.loads(kept_sums.read_text())["entries"].values()
    assert (entry["alias"], entry["counts"]["checkouts"]) == ("default", 3)


def test_the_end_of_a_process_is_not_held_up_by_a_folder_that_is_lost(
    site: SiteProcesses,
    make_database: MakeDatabase,
    server: EmbeddedServer,
    stats_dir: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    alias = make_database(server, stats_dir=False)
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT 1")
    answering_socket.default_folder(stats_dir).chmod(0o755)
    with caplog.at_level(logging.DEBUG, "django_pooled.metrics"):
        write_last_figures()
    assert "cannot write the last figures of this process: " in caplog.text


# The site


def test_a_site_is_told_by_its_pooled_databases(
    site: SiteProcesses, stats_dir: Path, make_database: MakeDatabase, server: EmbeddedServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    alias = make_database(server)
    unpooled = {**connections.settings["default"], "OPTIONS": {"pool": False}}
    broken = {**connections.settings["default"], "ENGINE": "not.to.be.found"}
    monkeypatch.setitem(connections.settings, "unpooled", unpooled)
    monkeypatch.setitem(connections.settings, "broken", broken)
    found = SiteProcesses.of_settings()
    assert {alias for alias, _ in found.site.databases} == {"default", alias}
    assert found.folders == (str(stats_dir), *socket_folder.BASES)
    assert found.sums_folder == str(stats_dir)
    assert found.key != site.key
    with pytest.raises(ImproperlyConfigured):
        connections["broken"]


# The page


def test_the_page_needs_no_database_and_no_pool(
    site: SiteProcesses, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    # pytest-django refuses whatever would use a database here.
    monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", True)
    monkeypatch.setitem(connections["default"].settings_dict, "ATOMIC_REQUESTS", True)
    before = {pool.id: pool.counters.checkouts for pool in registry.snapshots()}
    for address in ("/metrics", "/wrapped"):
        assert Client().get(address).status_code == 200
    assert {pool.id: pool.counters.checkouts for pool in registry.snapshots()} == before


def test_the_documentation_has_every_metric_with_its_type_and_labels(
    make_sibling: Callable[..., Publisher],
) -> None:
    counters = Counters(checkouts=1)
    for counter in ("restarts", "restarts_of", "pinned", "lost_commits", "refused_restarts"):
        getattr(counters, counter)["kind"] = 1
    counters.restarted["40001", "committed"] = 1
    made = snapshot(counters=counters, longest_waiting=1.0)
    text = as_text(of_pools([Source({"database": made.alias}, made, made.counters)]))
    shown = {
        sample.name.removeprefix("django_pooled_").removesuffix("_bucket"): (
            family.type,
            frozenset(sample.labels) - {"database"},
        )
        for family in parse_text(text)
        for sample in family.samples
        if family.type != "histogram" or sample.name.endswith("_bucket")
    }
    page_text = (Path(__file__).resolve().parents[3] / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| (`\w+`.*?) \| (gauge|counter|histogram) \| (.*?) ?\|$", page_text, re.M)
    documented = {
        name: (kind, frozenset(re.findall(r"`(\w+)`", labels)))
        for names, kind, labels in rows
        for name in re.findall(r"`(\w+)`", names.partition(":")[0])
    }
    for of_the_site in ("processes", "silent_processes"):
        assert documented.pop(of_the_site) == ("gauge", frozenset())
    assert documented == shown


def test_the_page_is_for_reading_and_not_for_keeping(site: SiteProcesses) -> None:
    response = Client().get("/metrics")
    assert response["Cache-Control"] == "no-store"
    assert response["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert Client().post("/metrics").status_code == 405
    assert Client().get("/metrics?by=worker").status_code == 400


def test_who_accepts_openmetrics_gets_it(make_sibling: Callable[..., Publisher]) -> None:
    make_sibling(restarts=None)
    accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2"
    response = Client().get("/metrics", headers={"accept": accept})
    assert response["Content-Type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    families = {family.name: family for family in parsed_openmetrics(response.content.decode())}
    assert families["django_pooled_checkouts"].type == "counter"
    assert families["django_pooled_checkout_wait_seconds"].type == "histogram"
    assert families["django_pooled_pool_idle"].type == "gauge"


def test_comments_have_no_place_in_openmetrics(
    site: SiteProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(connections.settings["default"]["OPTIONS"]["pool"], "stats_dir", False)
    text = scrape(accept="application/openmetrics-text")
    assert "Not added up" not in text
    assert parsed_openmetrics(text)


def test_counters_of_a_site_never_go_down_while_workers_are_killed_and_replaced(
    server: EmbeddedServer, stats_dir: Path
) -> None:
    def checkouts() -> float:
        found = samples(shop.text("/metrics")).get("checkouts_total", {})
        return sum(found.values())

    def replaced(worker: int) -> bool:
        return worker not in shop.pools(2)

    with (
        running.database(server, "metrics") as url,
        running.gunicorn(url, stats_dir=str(stats_dir)) as shop,
    ):
        shop.get_all([f"/double/{number}" for number in range(20)])
        workers = set(shop.pools(2))
        wait_until(lambda: checkouts() >= 20)
        seen = [checkouts()]
        for worker in workers:
            os.kill(worker, 9)
            wait_until(partial(replaced, worker), timeout=20)
            seen.append(checkouts())
            shop.get_all([f"/double/{number}" for number in range(10)])
            seen.append(checkouts())
        assert seen == sorted(seen)
        assert seen[-1] >= seen[0] + 20
        # Those that end by themselves take nothing along, however long ago the last scrape was.
        for worker in shop.pools(2):
            shop.get_all([f"/double/{number}" for number in range(10)])
            os.kill(worker, signal.SIGTERM)
            wait_until(partial(replaced, worker), timeout=20)
        assert checkouts() >= seen[-1] + 20
        assert {path.suffix for path in answering_socket.default_folder(stats_dir).iterdir()} <= {
            ".sock", ".json", ".lock"
        }  # fmt: skip

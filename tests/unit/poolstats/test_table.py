"""The tables of poolstats: the pools, what became of their connections, and the servers."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from django_pooled.poolstats import arguments, formatting
from django_pooled.poolstats.difference import since
from django_pooled.poolstats.findings.finding import Finding, Level
from django_pooled.poolstats.server.sessions import Session
from django_pooled.poolstats.server.view import ServerView, SessionGroup, summed
from django_pooled.poolstats.site import Site
from django_pooled.poolstats.tables import connection_table, details, pool_table, server_table
from django_pooled.poolstats.tables.columns import COLUMNS
from django_pooled.poolstats.tables.overview_table import Layout, as_table
from tests.support.reports import connection, overview, pool, process, times

if TYPE_CHECKING:
    from django_pooled.poolstats.overview import Overview


def server_of(*sessions: Session, **figures: Any) -> ServerView:
    """Return a server with these sessions."""
    figures = {"version": "15.18", "max_connections": 100, "reserved": 3, **figures}
    view = ServerView("default", **figures)
    view.sessions = list(sessions)
    return summed(view)


# Figures


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, "-"),
        (0.0, "0.0 ms"),
        (0.00004, "0.0 ms"),
        (0.0004, "0.4 ms"),
        (0.00996, "10 ms"),
        (0.25, "250 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.0 s"),
        (8.24, "8.2 s"),
        (9.96, "10 s"),
        (599.4, "599 s"),
        (720.0, "12 min"),
        (36_000.0, "10 h"),
        (864_000.0, "10 d"),
    ],
)
def test_a_duration_has_the_unit_that_fits(seconds: float | None, shown: str) -> None:
    assert formatting.duration(seconds) == shown
    assert len(shown) <= 6


@pytest.mark.parametrize(
    ("number", "shown"),
    [(0, "0"), (99_999, "99999"), (123_456, "123k"), (1_234_567, "1.2M"), (10**10, "10.0G")],
)
def test_a_count_has_few_digits(number: int, shown: str) -> None:
    assert formatting.count(number) == shown


def test_what_never_occurred_is_not_listed() -> None:
    assert formatting.kinds({"idle": 0, "dead": 2, "error": 5}) == "5 error, 2 dead"
    assert formatting.kinds({"40001": 2}, times="x ") == "2 x 40001"
    assert formatting.kinds({}) == ""


@pytest.mark.parametrize("width", range(12))
def test_a_cut_text_is_never_too_long(width: int) -> None:
    assert len(formatting.cut("votes.views", width)) <= max(width, 0)
    assert len(formatting.cut_left("votes.views", width)) <= max(width, 0)


def test_the_end_of_a_dotted_name_stays() -> None:
    assert formatting.cut_left("shop.votes.views.cast", 13) == "...views.cast"


# The pools


def rows(look: Overview, **arguments: Any) -> list[list[str]]:
    return [line.split() for line in pool_table.lines(look, **arguments)[2:]]


def test_a_line_tells_use_waiters_checkouts_and_waits() -> None:
    busy = pool(
        in_use=9,
        idle=1,
        waiting=12,
        longest_waiting=3.14,
        checkouts=1234,
        timeouts=1,
        exhausted=2,
        refused=4,
        wait=times(*[0.0001] * 90, *[0.1] * 6, *[1.0] * 4),
    )
    (row,) = rows(overview(process(busy)))
    assert " ".join(row[:9]) == "default, 4121 gunicorn 9/10 90% 1 12 3.1 s"
    assert row[9:11] == ["1234", "7"]
    assert " ".join(row[11:]) == "0.1 ms 95 ms 920 ms 1.0 s"


def test_a_pool_that_was_never_used_has_no_waits() -> None:
    (row,) = rows(overview(process(pool(wait=times()))))
    assert row[-4:] == ["-", "-", "-", "-"]


def test_a_database_has_the_sums_of_its_processes_above_them() -> None:
    first = process(pool(in_use=3, idle=1, longest_waiting=1.0, waiting=1), pid=1)
    second = process(pool(in_use=2, idle=2), pool("replica"), pid=2)
    assert [row[:6] for row in rows(overview(first, second))] == [
        ["default,", "2", "processes", "5/20", "25%", "3"],
        ["1", "gunicorn", "3/10", "30%", "1", "1"],
        ["2", "gunicorn", "2/10", "20%", "2", "0"],
        ["replica,", "2", "gunicorn", "0/10", "0%", "1"],
    ]


@pytest.mark.parametrize(
    ("processes", "asked_for", "shown"),
    [(8, None, 8), (9, None, 5), (9, 100, 9), (9, 3, 3), (9, 8, 9), (9, 0, 0), (1, 0, 0)],
)
def test_few_processes_are_all_shown_and_of_many_the_busiest(
    processes: int, asked_for: int | None, shown: int
) -> None:
    look = overview(*(process(pool(waiting=pid), pid=pid) for pid in range(1, processes + 1)))
    total, *found = rows(look, processes=asked_for)
    assert total[:2] == ["default,", str(processes)]
    pids = [int(row[0]) for row in found if row[0].isdigit()]
    assert pids == list(range(processes, processes - shown, -1))
    hidden = [row for row in found if row[0] == "..."]
    assert bool(hidden) == (0 < shown < processes)


def test_checkouts_of_some_seconds_are_a_seconds() -> None:
    before = overview(process(pool(checkouts=7)))
    after = overview(process(pool(checkouts=37)))
    after.taken = before.taken + 2.0
    lines = pool_table.lines(since(after, before))
    assert " per s " in lines[1]
    assert lines[2].split()[8] == "15.0"
    after = overview(process(pool(checkouts=10**7)))
    after.taken = before.taken + 1.0
    assert pool_table.lines(since(after, before))[2].split()[8] == "10.0M"


def test_every_line_fits_100_columns_whatever_the_names_and_figures() -> None:
    big = 12_345_678
    figures: dict[str, Any] = {"in_use": big, "idle": big, "waiting": big, "max_size": big}
    long = connection(2**31 - 1, state="in use" * 9, by="v" * 200, where="w" * 200, since=1e9)
    wide = pool(
        "a" * 80,
        **figures,
        checkouts=big * 1000,
        timeouts=big,
        wait=times(1e6),
        connect=times(1e6),
        use=times(1e6),
        longest_waiting=1e6,
        connect_failures=big,
        last_error="no " * 200,
        last_error_age=1.0,
        restarts={"x" * 50: big, "y" * 80: 1},
        connections=[{**long, "pinned_by": "p" * 90, "doomed_by": "d" * 90}],
    )
    server = server_of(Session(1, "django 1@" + "h" * 50, "s" * 80), Session(2, "o" * 63, "idle"))
    look = overview(process(wide, command="c" * 90, pid=10**9), servers=[server])
    look.collection.silent = [10**9]
    found = [Finding(Level.WARNING, "word " * 100)]
    for layout in (Layout(), Layout(connections=True)):
        lines = as_table(look, found, layout)
        assert [line for line in lines if len(line) > 100] == []


def test_a_narrow_terminal_gets_the_essential_columns() -> None:
    look = overview(process(), process(pid=4122))
    lines = pool_table.lines(look, width=80)
    assert lines[0].replace("-", "").split() == ["connections", "waiting", "checkouts", "wait"]
    assert lines[1].split() == [
        *("database,", "process", "in", "use", "idle", "now", "longest", "done", "failed"),
        *("p50", "p99"),
    ]
    assert lines[3] == (
        "  4121 gunicorn             0/10    1     0       -       7      0 0.8 ms 1.0 ms"
    )
    assert max(map(len, lines)) <= 80


def test_processes_that_do_not_answer_stand_below_the_others() -> None:
    look = overview()
    look.collection.silent = [4711]
    assert "  4711 does not answer" in as_table(look, [])


def test_the_heading_says_where_to_look() -> None:
    look = overview()
    look.collection.silent = [1]
    found = [
        Finding(Level.CRITICAL, "x", "waiting", "pool"),
        Finding(Level.WARNING, "z", "room", "database"),
    ]
    heading = as_table(look, found, Layout(paint=lambda level, text: f"<{text}>"))[0]
    assert heading.startswith("web-1 ")
    assert heading.endswith("  1 process answered, 1 silent: <critical>, look at the pool")
    assert as_table(overview(), [])[0].endswith(" answered: fine")


def test_a_sentence_ends_with_its_code_on_one_line() -> None:
    sentence = "word " * 16
    lines = as_table(overview(), [Finding(Level.WARNING, sentence, "idle in transaction")])
    assert f"warning   {sentence}".rstrip() in lines
    assert f"{' ' * 10}[idle-in-transaction]" in lines


# What became of the connections


def told(**figures: Any) -> dict[str, str]:
    """Return what is told of one pool, by its label."""
    lines = details.lines(overview(process(pool(**figures))), 100)[1:]
    return {line[2:20].strip(): line[20:] for line in lines}


def test_of_an_untroubled_pool_little_is_told() -> None:
    assert told() == {
        "in use for": "p50 8.4 ms, p99 10 ms, max 10 ms",
        "opened": "1 connection (p50 5.0 ms, p99 5.0 ms, max 5.0 ms)",
    }


@pytest.mark.parametrize(
    ("figures", "label", "text"),
    [
        ({"use": times(), "connect": times()}, "opened", "1 connection"),
        ({"closed": {"idle": 12, "dead": 4}}, "closed", "16: 12 idle, 4 dead"),
        (
            {"connect_failures": 14, "last_error": "refused", "last_error_age": 12.0},
            "failed to connect",
            "14 times, last 12 s ago: refused",
        ),
        ({"connect_failures": 1}, "failed to connect", "1 times"),
        (
            {"timeouts": 2, "exhausted": 1, "refused": 3},
            "failed checkouts",
            "3 refused by the server, 2 timed out, 1 refused by max_waiting",
        ),
        (
            {"deadlines": {"cancelled": 3, "checkout": 1, "refused": 0}},
            "deadlines ended",
            "3 amid a statement, 1 while waiting for a connection",
        ),
        ({"reclaimed": 1}, "reclaimed", "1 connection that a thread left behind at its end"),
        ({"replaced": 2}, "replaced", "2 connections lost between two statements of a request"),
        (
            {
                "restarts": {"40001": 5, "lost": 1},
                "restarted": {"40001": {"committed": 4, "failed": 1}},
            },
            "restarted",
            "5 x serialization failure (40001): 4 committed, 1 failed; 1 x connection lost",
        ),
        ({"restarts_of": {"cast": 2, "Page": 7}}, "restarted most", "7 x Page, 2 x cast"),
        (
            {"restarts_of": {**{f"view_{n}": n for n in range(1, 8)}, "others": 10}},
            "restarted most",
            "7 x view_7, 6 x view_6, 5 x view_5, 4 x view_4, 3 x view_3, 13 x others",
        ),
        ({"restarts_of": {"others": 1}}, "restarted most", "1 x others"),
        (
            {"refused_restarts": {"attempts": 2, "budget": 3, "new": 1, "other": 0}},
            "not restarted",
            "3 with the budget spent, 2 after the last attempt, 1 new",
        ),
        (
            {"lost_commits": {"committed": 2, "unknown": 1}},
            "lost COMMITs",
            "2 committed, 1 unknown",
        ),
        (
            {"idempotency_keys": {"stored": 12, "replayed": 3}},
            "idempotency keys",
            "12 stored, 3 replayed",
        ),
        (
            {"restarts": {"40001": 1}, "retry_budget_left": 97.2},
            "retry budget",
            "97 restarts left in the process that has fewest",
        ),
        (
            {"retry_budget_left": 0.4},
            "retry budget",
            "0 restarts left in the process that has fewest",
        ),
        ({"pinned": {"SET": 4, "LISTEN": 1}}, "kept by requests", "4 x SET, 1 x LISTEN"),
    ],
)
def test_what_happened_is_told(figures: dict[str, Any], label: str, text: str) -> None:
    assert told(**figures)[label] == text


def test_what_is_too_long_goes_on_below() -> None:
    found = told(connect_failures=1, last_error="word " * 40, last_error_age=1.0)
    assert found["failed to connect"].startswith("1 times, last 1.0 s ago: word")
    assert found[""].startswith("word")


def test_figures_say_since_when_they_are() -> None:
    assert details.lines(overview(), 100)[0] == '"default" since it was opened, 60 min ago'
    before, after = overview(), overview()
    after.taken = before.taken + 20.0
    assert details.lines(since(after, before), 100)[0] == '"default" in the last 20 s'


# Each connection


def test_connections_are_listed_with_what_the_server_says_of_them() -> None:
    name = "django 4121@web-1"
    mine = [
        connection(50, since=3.0),
        connection(51, state="in use", since=1.5, by="votes.views.tally"),
        connection(52, state="in use", since=8.2, by="votes.views.cast", where="votes.cast:4"),
        connection(53, state="in use", since=0.5, where="jobs.run:7", pinned_by="SET role"),
        connection(54, state="in use", since=0.2, doomed_by="57P01"),
    ]
    server = server_of(
        Session(50, name, "idle", None, 3.0),
        Session(51, name, "active", None, 1.4, 1.4),
        Session(52, name, "active", "Lock: transactionid", 8.0, 8.1, [77]),
        Session(53, "django 9@web-2", "idle", None, 3.0),
        Session(77, "psql", "idle in transaction", None, 40.0, 75.0),
    )
    look = overview(process(pool(connections=mine)), servers=[server])
    assert connection_table.lines(look, 120) == [
        '"default": 5 connections, 4 in use, 1 idle',
        "process backend state        for    age session on the server      in use by",
        "   4121      52 in use     8.2 s   60 s Lock:transactionid 8.0 s   votes.views.cast",
        '                behind session 77 ("psql"), idle in transaction for 40 s; at votes.cast:4',
        "   4121      51 in use     1.5 s   60 s active 1.4 s               votes.views.tally",
        # The session with this number is that of a process elsewhere.
        "   4121      53 in use    500 ms   60 s -                          jobs.run:7",
        "                kept by SET role",
        "   4121      54 in use    200 ms   60 s -",
        "                will be closed: 57P01",
        "   4121      50 idle       3.0 s   60 s idle 3.0 s",
    ]


def test_a_process_of_an_older_version_lists_no_connections() -> None:
    older = pool()
    del older["connections"]
    assert connection_table.lines(overview(process(older)), 100) == ['"default": no connections']


# The servers


def test_a_server_tells_room_states_hosts_and_others() -> None:
    ours = [Session(n, f"django {n % 3}@web-{n % 2}", "idle") for n in range(6)]
    others = [Session(10, "psql", "idle in transaction", None, 40.0, 75.0), Session(11, "", "idle")]
    blocked = Session(12, "psql", "active", "Lock: tuple", 1.0, 1.0)
    server = server_of(*ours, *others, blocked, standby=True)
    assert server_table.lines(overview(servers=[server]), 100) == [
        'PostgreSQL 15.18, a standby of "default": 9 of 100 connections used, 88 free, 3 reserved',
        "  sessions          7 idle, 1 active, 1 idle in transaction; oldest idle in transaction "
        "75 s; 1",
        "                    waiting for a lock",
        "  by host           web-0 3 processes with 3, web-1 3 processes with 3",
        "  others            2 psql, 1 (no name)",
    ]


def test_hosts_and_programs_beyond_a_few_are_summed_up() -> None:
    ours = [Session(n, f"django 1@web-{n}", "idle") for n in range(6)]
    others = [Session(n, f"job {n}", "idle") for n in range(10, 16)]
    lines = server_table.lines(overview(servers=[server_of(*ours, *others)]), 100)
    assert lines[2].endswith("web-1 1 process with 1, web-2 1 process with 1, 3 more")
    assert lines[3] == "                    hosts"
    assert lines[4].endswith("3 more, 1 job 10, 1 job 11, 1 job 12")


def test_behind_a_pooler_sessions_are_nobodys() -> None:
    server = server_of(Session(1, "django 1@web-1", "idle"), pooler=True)
    lines = server_table.lines(overview(servers=[server]), 100)
    assert lines[0].startswith('PostgreSQL 15.18 of "default", behind a pooler: 1 of 100 ')
    assert not any("by host" in line for line in lines)


def test_a_server_that_does_not_answer_has_no_lines() -> None:
    assert server_table.lines(overview(servers=[ServerView("default", error="refused")]), 100) == []
    assert server_table.lines(overview(servers=[server_of()]), 100)[1] == "  sessions          none"


# Between two looks


def test_what_is_counted_is_less_what_was_before() -> None:
    before = overview(
        process(
            pool(
                checkouts=7,
                closed={"idle": 2},
                restarts={"40001": 3},
                restarted={"40001": {"failed": 1}},
                wait=times(5.0),
            )
        )
    )
    after = overview(
        process(
            pool(
                checkouts=10,
                in_use=2,
                closed={"idle": 3, "dead": 1},
                restarts={"40001": 4, "40P01": 1},
                restarted={"40001": {"failed": 1, "committed": 1}},
                wait=times(5.0, 0.002),
            )
        )
    )
    after.taken = before.taken + 3.0
    changed = since(after, before)
    (group,) = changed.groups
    assert changed.seconds == 3.0
    assert (group.counters.checkouts, group.sum("in_use")) == (3, 2)
    assert +group.counters.closed == {"idle": 1, "dead": 1}
    assert +group.counters.restarts == {"40001": 1, "40P01": 1}
    assert +group.counters.restarted == {("40001", "committed"): 1}
    assert (group.counters.wait.count, group.counters.wait.longest) == (1, 0.0022)
    # The look itself stays as it is.
    assert after.groups[0].counters.checkouts == 10


def test_a_process_that_is_new_counts_from_its_beginning() -> None:
    before, after = overview(process(pid=1)), overview(process(pid=1), process(pid=2))
    after.taken = before.taken + 3.0
    (group,) = since(after, before).groups
    assert {row.process.pid: row.counters.checkouts for row in group.rows} == {1: 0, 2: 7}


def test_a_pool_in_place_of_another_counts_from_its_beginning() -> None:
    before = overview(process(pool(id="a", checkouts=7), pool(id="b", checkouts=50)))
    after = overview(process(pool(id="b", checkouts=51), pool(id="c", checkouts=8)))
    after.taken = before.taken + 3.0
    (group,) = since(after, before).groups
    assert [row.counters.checkouts for row in group.rows] == [1, 8]


def test_two_pools_of_one_alias_are_told_apart() -> None:
    before = overview(process(pool(checkouts=100), pool(checkouts=7)))
    after = overview(process(pool(checkouts=101), pool(checkouts=9), pool(checkouts=4)))
    after.taken = before.taken + 3.0
    (group,) = since(after, before).groups
    assert [row.counters.checkouts for row in group.rows] == [1, 2, 4]


# For programs


def test_json_has_sums_percentiles_and_the_session_of_each_connection() -> None:
    session = Session(50, "django 4121@web-1", "active", "Lock: tuple", 3.0, 3.0, [1])
    mine = pool(connections=[connection(50), connection(51)], wait=times(0.01), in_use=2)
    look = overview(process(mine), servers=[server_of(session)])
    values = look.as_json()
    (total,) = values["totals"]
    assert total["in_use"] == 2
    assert total["wait"] == pytest.approx(
        {"count": 1, "sum": 0.01, "p50": 0.0084, "p95": 0.00984, "p99": 0.009968, "max": 0.01}
    )
    first, second = values["processes"][0]["pools"][0]["connections"]
    assert first["session"]["state"] == "active"
    assert second["session"] is None
    assert values["server"]["default"]["blocked_sessions"][0]["blocked_by"] == [1]
    assert "sessions" not in values["server"]["default"]


def test_a_group_of_sessions_is_one_process() -> None:
    server = server_of(Session(1, "django 7@web-1", "idle"), Session(2, "django 7@web-1", "idle"))
    assert server.processes == [SessionGroup("django 7@web-1", 7, "web-1", 2)]


# The page


def test_the_page_has_every_option_and_column() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "poolstats.md").read_text(
        encoding="utf-8"
    )
    parser = argparse.ArgumentParser()
    arguments.add_arguments(parser)
    options = {option for action in parser._actions for option in action.option_strings}
    found = {option for option in options if re.search(rf"{option}\b", page)}
    assert options - found <= {"-h", "--help", "--timeout", "--user", "--stats-dir", "--database"}
    headings = [column.heading for column in COLUMNS]
    assert [name for name in headings if f"{name}" not in page] == []


def test_pools_of_two_sites_with_the_same_alias_are_told_apart_by_their_servers() -> None:
    site = Site("", (("default", "db.example:5432/site"), ("votes", "db.example:5432/site")))
    shop = {"server": "elsewhere:5432/shop", "site": "0dd51de5", "settings": "/srv/shop/conf.py"}
    look = overview(process(pool(in_use=1), pool("votes")), process(pool(**shop), pid=2), site=site)
    # The name of the site's own is the same without the other.
    names = ["default", "votes", "default at elsewhere:5432/shop of /srv/shop/conf.py"]
    assert [group.name for group in look.groups] == names
    lines = pool_table.lines(look)
    assert [line for line in lines if line.endswith(":")] == [f"{names[2]}:"]
    for name in names:
        assert any(line.startswith(f'"{name}" since') for line in details.lines(look, 100))
        assert any(line.startswith(f'"{name}": ') for line in connection_table.lines(look, 100))

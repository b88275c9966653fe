"""What poolstats says is wrong: the application, the pool or the database, and how bad it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from django_pooled.poolstats.difference import since
from django_pooled.poolstats.findings import overview_findings as findings
from django_pooled.poolstats.findings.finding import Finding, Level
from django_pooled.poolstats.findings.session_owners import root_of
from django_pooled.poolstats.findings.thresholds import Limit, Thresholds, verdict
from django_pooled.poolstats.server.pgbouncer_console import PoolerQueue
from django_pooled.poolstats.server.sessions import Session
from django_pooled.poolstats.server.view import ServerView, SessionGroup, summed
from django_pooled.stats.names import session_name
from tests.support.reports import connection, overview, pool, process, times

if TYPE_CHECKING:
    from django_pooled.poolstats.overview import Overview

NAME = "django 4121@web-1"


def server_of(*sessions: Session, **figures: Any) -> ServerView:
    """Return a server with these sessions and much room."""
    view = ServerView("default", **{"max_connections": 1000, **figures})
    view.sessions = list(sessions)
    return summed(view)


def starved(
    *sessions: Session,
    ages: list[float] | None = None,
    by: Any = "votes.cast",
    longest_waiting: float | None = 3.1,
    **server: Any,
) -> Overview:
    """Return a pool whose connections are all in use, with these sessions."""
    ages = [8.2] * len(sessions) if ages is None else ages
    views = [by] * len(ages) if isinstance(by, str) else by
    held = [
        connection(50 + number, state="in use", since=age, by=view, where="votes.models.cast:9")
        for number, (age, view) in enumerate(zip(ages, views, strict=True))
    ]
    size = len(held)
    figures: dict[str, Any] = {
        "in_use": size,
        "idle": 0,
        "max_size": size,
        "waiting": 12,
        "longest_waiting": longest_waiting,
    }
    return overview(
        process(pool(**figures, connections=held)), servers=[server_of(*sessions, **server)]
    )


def told(look: Overview, recent: Overview | None = None) -> list[tuple[Level, str]]:
    return [(finding.level, finding.sentence) for finding in findings.find(look, recent)]


def the(look: Overview, kind: str, recent: Overview | None = None) -> Finding:
    (finding,) = [found for found in findings.find(look, recent) if found.kind == kind]
    return finding


def later(before: dict[str, Any], after: dict[str, Any], seconds: float = 10.0) -> Overview:
    """Return what happened in so many seconds."""
    first, second = overview(process(pool(**before))), overview(process(pool(**after)))
    second.taken = first.taken + seconds
    return since(second, first)


def test_where_all_is_well_nothing_is_said() -> None:
    look = overview()
    assert told(look) == []
    assert findings.status(findings.find(look)) is Level.FINE


# Who makes others wait


def idle(pid: int, state: str = "idle in transaction", age: float = 8.0) -> Session:
    return Session(pid, NAME, state, None, age, age)


def active(pid: int, age: float = 8.0, wait: str | None = None, *by: int) -> Session:
    return Session(pid, NAME, "active", wait, age, age, list(by))


def test_a_view_that_holds_its_connection_and_asks_nothing_is_the_trouble() -> None:
    finding = the(starved(idle(50), idle(51), active(52, 0.1)), "waiting")
    assert finding == Finding(
        Level.CRITICAL,
        '12 waiters for "default" in process 4121 (gunicorn), the longest for 3.1 s: all 3 '
        "connections are in use by votes.cast, the longest for 8.2 s. The trouble is the "
        "application: 2 of 3 sessions are idle in a transaction: the database waits for its code.",
        "waiting",
        "application",
    )


def test_queries_that_take_long_are_the_databases_trouble() -> None:
    finding = the(starved(active(50), active(51, 7.0), idle(52)), "waiting")
    assert finding.trouble == "database"
    assert finding.sentence.endswith(
        "The trouble is the database: 2 of 3 sessions are running a query, the longest for 8.0 s."
    )


def test_connections_that_are_in_use_for_a_moment_only_are_too_few() -> None:
    finding = the(starved(active(50), active(51), ages=[0.2, 0.1]), "waiting")
    assert finding.trouble == "pool"
    assert finding.sentence.endswith(
        "none is held for long, so max_size is too small for the load."
    )
    sessions = [active(50 + number) for number in range(4)]
    finding = the(starved(*sessions, ages=[9.0, 0.2, 0.1, 0.1]), "waiting")
    assert "only 1 of 4 are held for long" in finding.sentence


@pytest.mark.parametrize(
    ("held", "trouble"), [(0.65, "application"), (0.5, "pool"), (0.05, "pool")]
)
def test_connections_that_were_handed_out_when_the_waiters_came_are_held(
    held: float, trouble: str
) -> None:
    look = starved(idle(50), idle(51), ages=[held, held], longest_waiting=0.68)
    assert the(look, "waiting").trouble == trouble


def test_a_lock_that_an_idle_session_has_is_its_applications_trouble() -> None:
    blocker = Session(77, "psql", "idle in transaction", None, 40.0, 75.0)
    look = starved(
        active(50, 8.0, "Lock: tuple", 77), active(51, 9.0, "Lock: tuple", 50), blocker, ages=[9, 9]
    )
    finding = the(look, "waiting")
    assert finding.trouble == "application"
    assert finding.sentence.endswith(
        "The trouble is the application: all 2 sessions wait for locks behind session 77 "
        '("psql"), idle in transaction for 40 s.'
    )


def test_a_lock_that_a_busy_session_has_is_the_databases_trouble() -> None:
    look = starved(active(50, 8.0, "Lock: tuple", 77), Session(77, "nightly", "active"), ages=[9.0])
    finding = the(look, "waiting")
    assert finding.trouble == "database"
    assert finding.sentence.endswith('the session waits for a lock behind session 77 ("nightly").')


def test_a_lock_that_nobody_is_known_to_have_is_told_as_such() -> None:
    finding = the(starved(active(50, 8.0, "Lock: tuple")), "waiting")
    assert finding.sentence.endswith("the session waits for a lock.")
    assert finding.trouble == "database"


def test_of_several_views_the_one_with_most_connections_is_named() -> None:
    sessions = [idle(50), idle(51), idle(52)]
    first = the(starved(*sessions, by=["votes.cast", "votes.cast", "jobs.run"]), "waiting")
    assert "for 8.2 s by votes.cast, which has 2 of them." in first.sentence
    ages = [9.5, 8.0, 8.0]
    other = the(
        starved(*sessions, ages=ages, by=["jobs.run", "votes.cast", "votes.cast"]), "waiting"
    )
    assert "for 9.5 s by jobs.run, and 2 by votes.cast." in other.sentence
    nobody = the(starved(idle(50), by=[None]), "waiting")
    assert "the only connection is in use, the longest for 8.2 s by votes.models.cast:9." in (
        nobody.sentence
    )
    assert "all by" not in nobody.sentence


def test_with_the_database_away_what_holds_connections_is_the_database() -> None:
    finding = the(starved(ages=[9.0], error="refused"), "waiting")
    assert finding.trouble == "database"
    assert finding.sentence.endswith("The trouble is the database: it does not answer.")


def test_what_the_server_does_not_say_is_not_guessed() -> None:
    finding = the(starved(ages=[9.0], pooler=True), "waiting")
    assert finding.trouble == ""
    assert finding.sentence.endswith("for 9.0 s by votes.cast.")
    look = starved(ages=[9.0])
    look.servers = []
    assert the(look, "waiting").trouble == ""


def test_a_process_that_lists_no_connections_is_starved_all_the_same() -> None:
    full = pool(in_use=10, idle=0, waiting=1)
    assert told(overview(process(full), process(full, pid=4122))) == [
        (Level.CRITICAL, '2 waiters for "default" in 2 processes: all 20 connections are in use.')
    ]


def test_waiters_while_connections_are_opened_are_a_warning() -> None:
    (finding,) = told(overview(process(pool(idle=0, waiting=1, connecting=1))))
    assert finding == (
        Level.WARNING,
        '1 waiter for "default" in process 4121 (gunicorn) while connections are being opened.',
    )


def test_waiters_while_connections_change_hands_are_told_as_such() -> None:
    passing: dict[str, Any] = {"idle": 1, "in_use": 9, "waiting": 2, "longest_waiting": 0.2}
    assert told(
        overview(process(pool(**passing), pool(**{**passing, "longest_waiting": 0.05})))
    ) == [
        (
            Level.WARNING,
            '4 waiters for "default" in process 4121 (gunicorn), the longest for 200 ms while '
            "connections change hands.",
        )
    ]


@pytest.mark.parametrize(
    ("seconds", "level"),
    [(0.005, Level.FINE), (0.2, Level.WARNING), (1.0, Level.CRITICAL), (None, Level.CRITICAL)],
)
def test_waiters_are_judged_by_how_long_they_wait(seconds: float | None, level: Level) -> None:
    look = starved(idle(50), longest_waiting=seconds)
    assert the(look, "waiting").level is level


def test_a_lock_may_keep_some_of_the_connections_only() -> None:
    sessions = [active(50, 8.0, "Lock: tuple"), active(51, 8.0, "Lock: tuple"), idle(52)]
    finding = the(starved(*sessions), "waiting")
    assert finding.sentence.endswith("2 of 3 sessions wait for locks.")


def test_waiters_of_a_pool_that_lost_all_its_connections_are_critical() -> None:
    cut_off: dict[str, Any] = {
        "idle": 0,
        "waiting": 2,
        "last_error": "refused",
        "last_error_age": 1.0,
    }
    finding = the(overview(process(pool(**cut_off))), "waiting")
    assert finding.level is Level.CRITICAL
    assert "connecting fails, and no connection is left" in finding.sentence


@pytest.mark.parametrize(
    ("error", "why"),
    [
        ("FATAL:  sorry, too many clients already", "is full (53300)"),
        ("connection refused", "does not answer"),
    ],
)
def test_waiters_for_connections_that_the_server_refuses_tell_so(error: str, why: str) -> None:
    figures: dict[str, Any] = {
        "idle": 0,
        "in_use": 2,
        "max_size": 5,
        "waiting": 6,
        "longest_waiting": 2.5,
        "last_error": error,
        "last_error_age": 0.5,
    }
    finding = the(overview(process(pool(**figures))), "waiting")
    assert (finding.level, finding.trouble) == (Level.CRITICAL, "database")
    assert finding.sentence == (
        '6 waiters for "default" in process 4121 (gunicorn), the longest for 2.5 s: only 2 of 5 '
        f"connections are open, and the server {why}."
    )
    since = the(overview(process(pool(**figures, connected_again_age=0.2))), "waiting")
    assert since.sentence.endswith("while connections are being opened.")


# The pools


def test_a_connect_error_is_told_while_it_is_fresh() -> None:
    failed: dict[str, Any] = {
        "last_error": "connection failed: no route",
        "last_error_age": 3.0,
    }
    assert told(overview(process(pool(**failed)))) == [
        (
            Level.WARNING,
            'Process 4121 (gunicorn) failed to connect to "default", last 3 s ago: no route',
        )
    ]
    assert told(overview(process(pool(**{**failed, "last_error_age": 100.0})))) == []


def test_a_connect_error_is_critical_while_no_process_has_a_connection() -> None:
    failed: dict[str, Any] = {"last_error": "refused", "last_error_age": 8.0}
    none: dict[str, Any] = {**failed, "size": 0, "idle": 0}
    one, other = process(pool(**none)), process(pool(**none), pid=4122)
    assert the(overview(one, other), "connect").level is Level.CRITICAL
    served = process(pool(), pid=4123)
    assert the(overview(one, other, served), "connect").level is Level.WARNING
    old = process(pool(**{**none, "last_error_age": 75.0}))
    assert told(overview(old)) == []


@pytest.mark.parametrize(
    ("failed", "succeeded", "level"),
    [
        (34, 0, Level.CRITICAL),
        (5, 5, Level.CRITICAL),
        (5, 6, Level.WARNING),
    ],
)
def test_checkouts_are_critical_if_as_many_fail_as_succeed(
    failed: int, succeeded: int, level: Level
) -> None:
    look = later({"checkouts": 0}, {"refused": failed, "checkouts": succeeded})
    [finding] = [each for each in findings.find(overview(), look) if each.kind == "failed"]
    assert finding.level is level
    assert finding.sentence.startswith(f'{failed} checkouts for "default" failed in the last 10 s')


def test_failures_and_broken_connections_are_told_of_the_last_seconds_only() -> None:
    figures: dict[str, Any] = {
        "timeouts": 2,
        "exhausted": 1,
        "closed": {"dead": 3, "error": 1, "idle": 9},
        "checkouts": 100_000,
    }
    assert told(overview(process(pool(**figures)))) == []
    assert told(overview(), later({}, figures)) == [
        (
            Level.WARNING,
            '3 checkouts for "default" failed in the last 10 s: 2 timed out, '
            "1 refused by max_waiting.",
        ),
        (Level.WARNING, '4 connections of "default" broke in the last 10 s: 3 dead, 1 error.'),
    ]
    assert told(overview(), later(figures, figures)) == []


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("idle", "a larger min_size or max_idle would keep them."),
        ("lifetime", "max_lifetime is short."),
        ("drained", "pools are closed"),
    ],
)
def test_connections_that_come_and_go_are_told_with_the_reason(reason: str, words: str) -> None:
    after = {"connects": 121, "checkouts": 207, "closed": {reason: 119}}
    finding = the(overview(), "churn", later({}, after))
    assert finding.sentence.startswith(
        'Process 4121 (gunicorn) opened 12.0 connections to "default" a second, 120 for '
        f"200 checkouts: 119 {reason}; {words}"
    )
    assert finding.trouble == "pool"


def test_connections_that_stay_are_no_news() -> None:
    # Filled for the first time; few for so many checkouts; over a long time.
    assert told(overview(), later({"connects": 0}, {"connects": 10})) == []
    assert told(overview(), later({}, {"connects": 121, "checkouts": 5000})) == []
    assert told(overview(process(pool(connects=3000, checkouts=6000, age=3600.0)))) == []
    churning = overview(process(pool(connects=30, checkouts=60, age=20.0)))
    assert the(churning, "churn").sentence.endswith(" 30 for 60 checkouts.")


def forgotten(in_use: int) -> Overview:
    held = [
        connection(50, state="in use", since=400.0, by="jobs.run", where="jobs.run:7"),
        connection(51, state="in use", since=90.0),
        connection(52, state="in use", since=90.0),
    ]
    sessions = [idle(50, "idle", 312.0), idle(51, "idle", 80.0), active(52, 80.0)]
    figures: dict[str, Any] = {"in_use": in_use, "idle": 1, "connections": held}
    return overview(process(pool(**figures)), servers=[server_of(*sessions)])


def test_a_connection_in_use_that_asks_nothing_for_long_is_told() -> None:
    finding = the(forgotten(3), "forgotten")
    assert finding == Finding(
        Level.FINE,
        '2 connections of "default" are in use without a query, the longest '
        "for 312 s by jobs.run (jobs.run:7) in process 4121 (gunicorn): perhaps they were "
        "forgotten.",
        "forgotten",
        "application",
    )
    assert the(forgotten(8), "forgotten").level is Level.WARNING
    look = forgotten(3)
    look.servers[0] = server_of(idle(51, "idle", 80.0))
    assert "1 connection of" in the(look, "forgotten").sentence
    assert "perhaps it was forgotten" in the(look, "forgotten").sentence


@pytest.mark.parametrize(
    ("kinds", "trouble"), [({"40001": 30, "lost": 10}, "application"), ({"57P01": 40}, "database")]
)
def test_many_restarts_are_told_with_what_they_are_for(kinds: dict[str, int], trouble: str) -> None:
    look = overview(process(pool(restarts=kinds, checkouts=100)))
    finding = the(look, "restarts")
    assert finding.sentence.startswith(
        '40 transactions on "default" had to be restarted, in 100 checkouts: '
    )
    assert finding.trouble == trouble
    assert told(overview(process(pool(restarts=kinds, checkouts=1000)))) == []


def test_a_spent_retry_budget_is_told() -> None:
    finding = the(overview(process(pool(retry_budget_left=0.4))), "budget")
    assert finding.level is Level.WARNING
    assert "retry budget" in finding.sentence


def test_commits_that_stay_unknown_are_told() -> None:
    look = overview(process(pool(lost_commits={"committed": 2, "unknown": 1})))
    assert told(look) == [
        (Level.FINE, '1 COMMIT on "default" had no answer, and the outcome stays unknown.')
    ]


# The servers


@pytest.mark.parametrize(
    ("used", "level", "words"),
    [
        (10, Level.FINE, None),
        (90, Level.WARNING, "has room for 7 more connections: 90 of 100 connections are used"),
        (97, Level.CRITICAL, "is full (53300): 97 of 100 connections are used and 3 reserved."),
    ],
)
def test_a_server_short_of_connections_is_told(used: int, level: Level, words: str | None) -> None:
    server = ServerView("default", max_connections=100, reserved=3, used=used)
    found = findings.find(overview(servers=[server]))
    assert findings.status(found) is level
    assert (words is None) == (found == [])
    assert words is None or words in found[0].sentence


def test_a_full_server_tells_who_has_the_connections() -> None:
    sessions = [Session(n, "django 1@web-2", "idle") for n in range(5)]
    sessions += [Session(9, "psql", "idle"), Session(10, "", "idle"), Session(11, "", "idle")]
    look = overview(process(pool(max_size=1)), servers=[server_of(*sessions, max_connections=8)])
    assert the(look, "room").sentence == (
        'The server of "default" is full (53300): 8 of 8 connections are used, 5 by processes on '
        'web-2, 2 by "unnamed", 1 by "psql".'
    )


def test_pools_that_may_outgrow_the_server_are_noted() -> None:
    server = ServerView("default", max_connections=100, reserved=3, used=60)
    look = overview(process(pool(max_size=50)), servers=[server])
    assert told(look) == [
        (
            Level.FINE,
            'The pools of "default" may open 49 more connections, and its server has room for 37.',
        )
    ]
    server.pooler = True
    assert [finding.kind for finding in findings.find(look)] == ["pooler"]


def test_a_session_that_idles_in_its_transaction_is_told_with_whose_it_is() -> None:
    mine = pool(connections=[connection(50, state="in use", since=80.0, by="votes.cast")])
    look = overview(process(mine), servers=[server_of(idle(50, age=75.0), idle(51, age=3.0))])
    finding = the(look, "idle in transaction")
    assert finding.level is Level.WARNING
    assert finding.trouble == "application"
    assert finding.sentence == (
        'A session on the server of "default" idles in its transaction for 75 s: session 50 by '
        "votes.cast in process 4121 (gunicorn), idle in transaction for 75 s."
    )
    server = ServerView("default", max_connections=100, longest_idle_in_transaction=75.0)
    assert the(overview(servers=[server]), "idle in transaction").sentence.endswith(" for 75 s.")


@pytest.mark.parametrize(
    ("holder", "words", "trouble"),
    [
        (
            Session(77, "psql", "idle in transaction"),
            ', behind session 77 ("psql").',
            "application",
        ),
        (Session(77, "psql", "active"), ', behind session 77 ("psql").', "database"),
        (None, ", behind session 77.", "database"),
    ],
)
def test_sessions_that_wait_for_a_lock_are_told_with_who_has_it(
    holder: Session | None, words: str, trouble: str
) -> None:
    sessions = [active(50, 12.0, "Lock: tuple", 77), active(51, 3.0, "Lock: tuple", 50)]
    sessions += [holder] if holder else []
    finding = the(overview(servers=[server_of(*sessions)]), "blocked")
    start = '2 sessions on the server of "default" wait for locks, the longest for 12 s'
    assert finding.sentence == start + words
    assert finding.trouble == trouble


def test_a_short_wait_for_a_lock_is_no_news_and_a_prepared_transaction_has_no_session() -> None:
    assert told(overview(servers=[server_of(active(50, 4.0, "Lock: tuple", 77))])) == []
    prepared = overview(servers=[server_of(active(50, 9.0, "Lock: tuple", 0))])
    assert the(prepared, "blocked").sentence == (
        '1 session on the server of "default" waits for a lock for 9.0 s, behind a prepared '
        "transaction."
    )
    unknown = overview(servers=[server_of(active(50, 9.0, "Lock: tuple"))])
    assert the(unknown, "blocked").sentence.endswith(" for 9.0 s.")


def test_sessions_that_wait_for_each_other_have_nobody_at_the_end() -> None:
    first, second = active(50, 9.0, "Lock: tuple", 51), active(51, 9.0, "Lock: tuple", 50)
    assert root_of(server_of(first, second), first) is None


def test_a_pooler_in_between_is_told_and_numbers_of_sessions_are_not_trusted() -> None:
    mine = pool(connections=[connection(50, state="in use")])
    server = server_of(idle(50, age=3.0), Session(51, "django 9@web-9", "idle"), pooler=True)
    look = overview(process(mine), servers=[server])
    (row,) = look.groups[0].rows
    assert look.session(row, row.pool.connections[0]) is None
    assert told(look) == [
        (
            Level.FINE,
            'A pooler stands before the server of "default": it is unknown which of its '
            "sessions serves which connection or process.",
        )
    ]


def test_processes_out_of_reach_are_counted_by_host() -> None:
    hosts = ["web-1", "web-2", "web-2", "web-3", "web-4", "web-5", "web-6"]
    sessions = [Session(n, f"django {n}@{host}", "idle") for n, host in enumerate(hosts)]
    assert told(overview(servers=[server_of(*sessions)])) == [
        (
            Level.FINE,
            "PostgreSQL sees 7 more processes that this command cannot reach (2 on web-2, 1 on "
            "this host, 1 on web-3, 1 on web-4, and 2 other hosts).",
        )
    ]


def test_a_name_that_the_server_cut_is_recognised() -> None:
    host = "é" * 60
    name = session_name(4121, host)
    assert len(name.encode()) <= 63
    look = overview(process(host=host), servers=[ServerView("default", max_connections=100)])
    look.servers[0].processes = [SessionGroup(name, 4121, name.partition("@")[2])]
    assert look.unreachable(look.servers[0]) == []


def test_a_session_of_another_name_may_be_a_pools() -> None:
    mine = pool(connections=[connection(50), connection(51)])
    look = overview(process(mine), servers=[server_of(Session(50, "shop", "idle"))])
    (row,) = look.groups[0].rows
    session = look.session(row, row.pool.connections[0])
    assert session is not None
    assert session.application_name == "shop"
    assert look.session(row, row.pool.connections[1]) is None
    assert look.owner(50) == (row, row.pool.connections[0])
    assert look.owner(51) is None


def test_a_database_away_outweighs_that_no_process_was_reached() -> None:
    nobody = overview(servers=[ServerView("default", error="refused")])
    nobody.collection.reports = []
    found = findings.find(nobody)
    assert findings.status(found) is Level.CRITICAL
    assert found[0].as_json() == {
        "level": "critical",
        "kind": "away",
        "trouble": "database",
        "sentence": 'The database "default" does not answer: refused',
    }


# Thresholds


def options(**given: float) -> dict[str, Any]:
    names = ("waiting", "wait_p99", "in_use", "server")
    return {f"{word}_{name}": None for word in ("warn", "critical") for name in names} | given


@pytest.mark.parametrize(
    ("given", "level", "sentence"),
    [
        ({"warn_waiting": 13.0}, Level.FINE, None),
        (
            {"warn_waiting": 12.0},
            Level.WARNING,
            '"default": waiting is 12, and --warn-waiting 12.',
        ),
        (
            {"warn_waiting": 1.0, "critical_waiting": 12.0},
            Level.CRITICAL,
            '"default": waiting is 12, and --critical-waiting 12.',
        ),
        (
            {"critical_wait_p99": 3.0, "warn_waiting": 99.0},
            Level.CRITICAL,
            '"default": wait-p99 is 3.1s, and --critical-wait-p99 3s.',
        ),
        (
            {"warn_in_use": 80.0, "critical_waiting": 99.0},
            Level.WARNING,
            '"default": in-use is 100%, and --warn-in-use 80%.',
        ),
        (
            {"critical_server": 0.1, "critical_waiting": 99.0},
            Level.CRITICAL,
            '"default": server is 0.1%, and --critical-server 0.1%.',
        ),
    ],
)
def test_a_threshold_is_reached_at_its_value(
    given: dict[str, float], level: Level, sentence: str | None
) -> None:
    look = starved(idle(50, "idle", 3.0))
    thresholds = Thresholds.of(options(**given))
    found = thresholds.judge(look, findings.find(look))
    assert findings.status(found) is level
    judged = [finding.sentence for finding in found if finding.kind == "threshold"]
    assert judged == ([sentence] if sentence else [])


def test_a_warning_after_what_is_critical_is_refused() -> None:
    with pytest.raises(ValueError, match="--warn-in-use 90 is more than --critical-in-use 80"):
        Thresholds.of(options(warn_in_use=90.0, critical_in_use=80.0))


def test_a_threshold_for_waits_says_nothing_without_checkouts() -> None:
    look = overview(process(pool(wait=times())), servers=[ServerView("default", error="refused")])
    thresholds = Thresholds({"wait_p99": Limit(0.0, 0.0)})
    assert [found.kind for found in thresholds.judge(look, [])] == []
    assert verdict(look, [], thresholds) == (
        "FINE: 0 of 10 connections in use, 0 waiting | default_waiting=0 default_in_use=0%"
    )


def test_performance_data_can_be_read_by_monitoring_systems() -> None:
    look = overview(process(pool('odd" alias|', in_use=1)), servers=[])
    found = [Finding(Level.WARNING, "One | two"), Finding(Level.FINE, "not told")]
    thresholds = Thresholds({"waiting": Limit(3.0, None), "in_use": Limit(None, 90.0)})
    assert verdict(look, found, thresholds).splitlines() == [
        "WARNING: 1 of 10 connections in use, 0 waiting | odd_alias__waiting=0;3 "
        "odd_alias__wait_p99=0.0009968s odd_alias__in_use=10%;;90",
        "One / two",
    ]


# A read-only server.

STANDBY = "10.0.0.5:5432 is a read-only standby"


def test_a_server_that_refuses_writes_is_critical_and_counted_over_all_processes() -> None:
    refusing: dict[str, Any] = {"read_only": STANDBY, "read_only_age": 3.0}
    look = overview(
        process(pool(**refusing, refused_writes=7), pid=1),
        process(pool(**refusing, refused_writes=5), pid=2),
        process(pool(), pid=3),
    )
    sentence = f'"default": {STANDBY}: writes fail (25006)'
    assert told(look) == [(Level.CRITICAL, f"{sentence}.")]
    look.seconds = 10.0
    assert told(look) == [(Level.CRITICAL, f"{sentence}, 12 in the last 10 s.")]
    [found] = findings.find(look)
    assert (found.kind, found.trouble) == ("read only", "database")


def test_a_write_that_was_refused_long_ago_is_a_note() -> None:
    look = overview(process(pool(read_only=STANDBY, read_only_age=725.0)))
    assert told(look) == [
        (
            Level.FINE,
            f'"default": {STANDBY}: writes fail (25006), the last one 12 min ago.',
        )
    ]


def test_a_server_that_has_to_write_is_critical_before_any_write() -> None:
    look = overview(process(pool(read_only=STANDBY, read_only_age=None)))
    assert told(look)[0][0] is Level.CRITICAL


def test_connections_replaced_at_a_read_only_server_are_not_called_a_trouble_of_the_pool() -> None:
    figures: dict[str, Any] = {
        "connects": 90,
        "closed": {"drained": 80},
        "checkouts": 100,
        "age": 10.0,
    }
    [(_, sentence)] = told(overview(process(pool(**figures))))
    assert "opened 9.0 connections" in sentence
    look = overview(process(pool(**figures, read_only=STANDBY, read_only_age=1.0)))
    assert [kind for _, _, kind, _ in findings.find(look)] == ["read only"]


# A pooler without a free server connection.


def test_waiters_behind_a_full_pooler_are_not_told_to_enlarge_the_pool() -> None:
    full = PoolerQueue(waiting=9, longest_waiting=3.4, active=2, idle=0, pool_size=2)
    for server in (
        {"queue": full, "error": "nothing came within 3 s"},
        {"waits_in_pooler": True, "error": "nothing came within 3 s"},
    ):
        figures: dict[str, Any] = {"pooler": True, **server}
        look = starved(ages=[0.2, 0.3, 0.1], longest_waiting=2.0, **figures)
        found = findings.find(look)
        assert found[0].kind == "pooler full"
        finding = the(look, "waiting")
        assert finding.trouble == "database"
        assert "its pooler has no free server connection" in finding.sentence
        assert "max_size" not in finding.sentence


@pytest.mark.parametrize(("longest", "level"), [(0.05, None), (0.4, 1), (1.0, 2)])
def test_clients_of_a_pooler_are_judged_by_how_long_the_oldest_waits(
    longest: float, level: int | None
) -> None:
    queue = PoolerQueue(waiting=1, longest_waiting=longest, active=1, idle=0, pool_size=1)
    server = server_of(pooler=True, queue=queue)
    found = [one for one in findings.find(overview(servers=[server])) if one.kind == "pooler full"]
    assert [one.level for one in found] == ([] if level is None else [level])
    if level:
        assert (
            "no free server connection: the only one is in use, 1 client waits" in found[0].sentence
        )


def test_what_a_pooler_broke_is_no_churn_and_not_counted_as_broken() -> None:
    figures: dict[str, Any] = {
        "connects": 90,
        "pooler_timeouts": 80,
        "closed": {"error": 80},
        "checkouts": 100,
    }
    look = overview(process(pool(**figures, age=10.0)), seconds=10.0)
    assert [finding.kind for finding in findings.find(look)] == ["pooler full"]


# Connect errors of another incident.


def test_a_connect_error_that_is_over_is_a_note_that_says_so() -> None:
    figures: dict[str, Any] = {"last_error": "refused", "last_error_age": 31.0}
    over = process(pool(**figures, connected_again_age=20.0))
    assert told(overview(over)) == [
        (
            Level.FINE,
            'Process 4121 (gunicorn) failed to connect to "default" 31 s ago, and connected again '
            "since: refused",
        )
    ]
    # Another incident's waiters are not cut off by it.
    waiting: dict[str, Any] = {"waiting": 2, "longest_waiting": 5.0, "idle": 0, "size": 0}
    found = findings.find(overview(process(pool(**figures, **waiting, connected_again_age=20.0))))
    assert "connecting fails" not in " ".join(finding.sentence for finding in found)
    # One process that still fails is the one to name.
    still = process(pool(last_error="refused", last_error_age=3.0), pid=7)
    finding = the(overview(over, still), "connect")
    assert finding.level is Level.WARNING
    assert finding.sentence.startswith('Process 7 (gunicorn) failed to connect to "default", last')


def test_a_server_that_is_away_is_not_called_read_only_any_more() -> None:
    figures: dict[str, Any] = {
        "read_only": STANDBY,
        "read_only_age": 20.0,
        "idle": 0,
        "size": 0,
        "last_error": "refused",
        "last_error_age": 1.0,
    }
    found = findings.find(overview(process(pool(**figures)), seconds=10.0))
    assert "read only" not in [finding.kind for finding in found]
    # Connected again, and read-only still: none was refused in these seconds, though lately.
    figures |= {"size": 1, "idle": 1, "connected_again_age": 0.5}
    [finding] = [
        one
        for one in findings.find(overview(process(pool(**figures)), seconds=10.0))
        if one.kind == "read only"
    ]
    assert finding.level is Level.CRITICAL
    assert finding.sentence == f'"default": {STANDBY}: writes fail (25006).'


# Pauses


PAUSED: dict[str, Any] = {
    "paused_for": 12.0,
    "paused_by": "user 33 (process 4711)",
    "waiting": 4,
    "longest_waiting": 3.2,
}


def test_a_pause_is_told_with_who_has_ordered_it_and_when_it_ends() -> None:
    look = overview(process(pool(**PAUSED)), process(pool(**PAUSED), pid=4122))
    assert told(look) == [
        (
            Level.WARNING,
            '"default" is paused in 2 processes by user 33 (process 4711), and resumes by itself '
            'within 12 s: 8 waiters for "default" in 2 processes, the longest for 3.2 s.',
        )
    ]


def test_waiters_of_a_paused_pool_are_no_trouble_of_its_connections() -> None:
    full = {"in_use": 10, "idle": 0, **PAUSED}
    look = overview(process(pool(**full)), process(pool(in_use=1), pid=4122))
    (finding,) = findings.find(look)
    assert finding.code == "paused"
    assert "in process 4121 (gunicorn)" in finding.sentence

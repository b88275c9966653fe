"""The past of the pools: intervals of several processes joined, incidents, and the table."""

from __future__ import annotations

import json
from dataclasses import replace
from time import time
from typing import Any

import pytest

from django_pooled.poolstats.findings.finding import Level
from django_pooled.poolstats.past import Past
from django_pooled.poolstats.processes.report_parser import InvalidAnswer, parse_report
from django_pooled.poolstats.tables import past_table
from tests.support.reports import connection, overview, pool, process, times

NOW = time() // 60 * 60


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The past is looked at now, however long ago this module was imported."""
    monkeypatch.setattr("django_pooled.poolstats.past.time", lambda: NOW)


def interval(ago: float, **figures: Any) -> dict[str, Any]:
    """Return an interval that began so many seconds ago, of a quiet pool unless told otherwise."""
    return {"time": NOW - ago, "seconds": 5.0, "pools": [pool(**{"checkouts": 0, **figures})]}


def starved(status: str, waiting: int, longest: float) -> dict[str, Any]:
    """Return the figures of a pool whose connections one view holds."""
    held = [
        connection(n, state="in use", since=longest, by="shop.views.report", status=status)
        for n in (71, 72)
    ]
    full = {"idle": 0, "in_use": 2, "max_size": 2, "connections": held}
    return {**full, "waiting": waiting, "longest_waiting": longest}


def past(*histories: list[dict[str, Any]], seconds: float = 900.0) -> Past:
    """Return the past of processes that remember these intervals."""
    processes = [process(pid=n, history=history) for n, history in enumerate(histories, 1)]
    return Past(overview(*processes, servers=[]), seconds)


def test_an_incident_has_its_begin_its_end_and_the_sentence_of_its_worst_moment() -> None:
    look = past(
        [
            interval(60),
            interval(55, **starved("idle in transaction", 3, 2.0)),
            interval(50, **starved("idle in transaction", 3, 7.0)),
            interval(45, **starved("idle in transaction", 1, 9.0)),
            interval(40),
            interval(35),
        ]
    )
    (incident,) = look.incidents
    assert (incident.begin, incident.end, incident.goes_on) == (NOW - 55, NOW - 40, False)
    assert incident.finding.level is Level.CRITICAL
    assert incident.finding.trouble == "application"
    assert incident.finding.sentence == (
        '3 waiters for "default" in process 1 (gunicorn), the longest for 7.0 s: all 2 connections '
        "are in use by shop.views.report, the longest for 7.0 s. The trouble is the application: "
        "all 2 sessions are idle in a transaction: the database waits for its code."
    )


def test_statements_under_way_put_it_down_to_the_database() -> None:
    (incident,) = past([interval(10, **starved("active", 2, 4.0))]).incidents
    assert incident.finding.trouble == "database"
    assert incident.finding.sentence.endswith(
        "all 2 sessions are running a query, or waiting for a lock."
    )


def test_statements_that_began_after_an_idle_transaction_may_wait_for_its_lock() -> None:
    """The past does not know of locks: the server is not asked."""
    figures = starved("active", 2, 8.0)
    leaked = connection(
        73, state="in use", since=26.0, by="shop.tasks.leak", status="idle in transaction"
    )
    figures.update(in_use=3, max_size=3, connections=[*figures["connections"], leaked])
    (incident,) = past([interval(10, **figures)]).incidents
    assert incident.finding.trouble == "application"
    assert incident.finding.sentence.endswith(
        "2 of 3 sessions are running a query, or waiting for a lock, perhaps behind the one by "
        "shop.tasks.leak, idle in a transaction."
    )


def test_it_goes_on_while_the_last_interval_has_it_and_over_a_quiet_one_it_is_the_same() -> None:
    bad = starved("active", 1, 3.0)
    look = past([interval(20, **bad), interval(15), interval(10, **bad)])
    assert [(it.begin, it.goes_on) for it in look.incidents] == [(NOW - 20, True)]
    apart = past([interval(30, **bad), interval(25), interval(20), interval(15, **bad)])
    assert [(it.begin, it.end) for it in apart.incidents] == [
        (NOW - 30, NOW - 25),
        (NOW - 15, NOW - 10),
    ]
    assert apart.incidents[0].as_json()["end"] == NOW - 25
    assert look.incidents[0].as_json()["end"] is None


def test_intervals_of_several_processes_are_added_up_by_their_time() -> None:
    look = past(
        [interval(10, in_use=1, checkouts=5, timeouts=2, held={"shop.views.cart": 4.0})],
        [interval(9.2, in_use=2, checkouts=7, held={"shop.views.cart": 1.0, "tidy": 5.0})],
        [interval(14, in_use=9)],
    )
    first, second = look.spans(5.0)["default"]
    assert (first.time, first.in_use) == (NOW - 15, 9)
    assert (second.time, second.in_use, second.max_size) == (NOW - 10, 3, 20)
    assert (second.counters.checkouts, second.failed) == (12, 2)
    assert second.as_json()["held"] == {"shop.views.cart": 5.0, "tidy": 5.0}
    (both,) = look.spans(60.0)["default"]
    assert (both.in_use, both.counters.checkouts) == (9, 12)


def test_what_is_older_than_was_asked_for_is_left_out() -> None:
    look = past([interval(600, in_use=4), interval(5)], seconds=120.0)
    assert [moment.time for moment in look.moments] == [NOW - 5]


def test_the_table_fits_eighty_columns_and_says_what_was_wrong_when() -> None:
    bad = starved("active", 2, 4.0)
    look = past(
        [interval(ago, held={"shop.views.report": 3.0, "x": 1.0}, **bad) for ago in (15, 10)]
    )
    text = past_table.lines(look, 80, lambda level, word: word)
    assert max(map(len, text)) <= 80
    assert text[0].startswith("web-1  the last 15 min of 1 process, known from ")
    assert text[2].startswith("critical  ")
    assert text[2].endswith(" to now")
    assert '"default" in steps of 60 s' in text
    assert "held longest      shop.views.report 6.0 s (75%), x 2.0 s (25%)" in "\n".join(text)
    quiet = past_table.lines(past([interval(5)]), 80, lambda level, word: word)
    assert "Nothing was wrong with the pools." in quiet
    assert any(line.startswith("Nothing is remembered") for line in past_table.lines(
        past([]), 80, lambda level, word: word
    ))  # fmt: skip


def test_a_history_of_nonsense_is_refused() -> None:
    broken = process(history=[interval(5, waiting=-1)])
    with pytest.raises(InvalidAnswer, match=r"history\[0\].pools\[0\].waiting is not a whole"):
        parse_report(json.dumps(broken).encode())
    many = process(history=[{"time": 1.0, "seconds": 5.0, "pools": []}] * 1001)
    with pytest.raises(InvalidAnswer, match="history has more than 1000 entries"):
        parse_report(json.dumps(many).encode())


def test_a_wait_is_that_of_the_interval_alone() -> None:
    (span,) = past([interval(5, checkouts=1, wait=times(0.5))]).spans(5.0)["default"]
    assert span.as_json()["wait_p99"] == pytest.approx(0.5, rel=0.2)
    assert replace(span, groups=span.groups).longest_waiting is None

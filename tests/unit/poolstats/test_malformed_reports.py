"""Reports that no process of ours would make: refused in a sentence, and nothing raises."""

from __future__ import annotations

import json
import os
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from django_pooled.poolstats.difference import since
from django_pooled.poolstats.findings.thresholds import Thresholds
from django_pooled.poolstats.processes.collect import collect
from django_pooled.poolstats.processes.report_parser import InvalidAnswer, parse_report
from django_pooled.poolstats.report import Report
from django_pooled.poolstats.server.sessions import Session
from django_pooled.poolstats.server.view import ServerView, summed
from django_pooled.poolstats.tables.overview_table import Layout, as_table
from tests.support.reports import connection, overview, pool, process

if TYPE_CHECKING:
    from pathlib import Path

    from django_pooled.poolstats.overview import Overview

ODD: list[Any] = [
    *(None, True, -1, 10**30, float("nan"), float("inf"), "\x1b[2J", [None, "x", 1], {}),
    *({"x": "y"}, {"x": {"y": "z"}}, {"x": {"y": 1}}, {"x": [1]}),
    {"count": "x", "sum": [], "max": {}, "buckets": "x"},
    {"count": 1, "sum": 1, "max": 1, "buckets": [1]},
]
REQUIRED = ("alias", "size", "idle", "in_use", "waiting", "max_size")


def busy() -> dict[str, Any]:
    """Return a pool of which every part of the output has something to say."""
    held = connection(50, state="in use", since=80.0, by="votes.cast", where="votes.cast:9")
    figures: dict[str, Any] = {"in_use": 1, "idle": 0, "max_size": 1, "waiting": 1}
    figures |= {"longest_waiting": 2.0, "last_error": "refused", "last_error_age": 1.0}
    return pool(**figures, connect_failures=1, connections=[held], id="a", name="default")


def seen(made: dict[str, Any], **report: Any) -> Overview:
    view = ServerView("default", max_connections=100)
    view.sessions = [Session(50, "django 4121@web-1", "idle in transaction", None, 80.0, 80.0)]
    # As it comes out of a socket.
    answer = json.dumps(process(made, **report)).encode()
    return overview(parse_report(answer), servers=[summed(view)])


def written(look: Overview, earlier: Overview) -> str:
    """Return everything that can be made of it."""
    look.taken = earlier.taken + 2.0
    recent = since(look, earlier)
    parts = []
    for one in (look, recent):
        made = Report(one, recent, Thresholds())
        parts += as_table(one, made.found, Layout(), recent=recent)
        parts += as_table(one, made.found, Layout(connections=True), recent=recent)
        parts.append(made.written("table", Layout(), check=True))
    assert not any("\x1b" in part for part in parts)
    parts += [made.written(how, Layout()) for how in ("json", "prometheus")]
    return "\n".join(parts)


def look_at(strange: dict[str, Any], place: str, **report: Any) -> bool:
    """Write everything of a pool that is made by hand; or find that it is refused by its place."""
    refusal = ""
    try:
        made = seen(strange, **report)
    except InvalidAnswer as error:
        refusal = str(error)
    if refusal:
        # What is no number for JSON is refused before its place is known.
        assert refusal.startswith((place, "NaN is", "Infinity is"))
        assert refusal.isprintable()
        return False
    assert "default" in written(made, seen(busy()))
    assert "default" in written(seen(busy()), made)
    return True


@pytest.mark.parametrize("key", sorted(busy()))
def test_a_figure_of_a_pool_is_what_it_should_be_or_the_answer_is_refused(key: str) -> None:
    accepted = [odd for odd in ODD if look_at({**busy(), key: odd}, f"pools[0].{key}")]
    if isinstance(busy()[key], int):
        assert accepted == []
    elif not isinstance(busy()[key], dict):
        assert len(accepted) <= 4


@pytest.mark.parametrize("key", sorted(set(busy()) - set(REQUIRED)))
def test_a_figure_that_another_version_does_not_report_may_be_missing(key: str) -> None:
    lacking = busy()
    del lacking[key]
    assert look_at(lacking, "nothing is refused")


@pytest.mark.parametrize("key", sorted(connection(1)))
def test_a_figure_of_a_connection_is_what_it_should_be(key: str) -> None:
    for odd in ODD:
        strange = busy()
        strange["connections"][0][key] = odd
        look_at(strange, f"pools[0].connections[0].{key}")


@pytest.mark.parametrize("key", ["pid", "user", "host", "command", "threads", "age", "pools"])
def test_a_figure_of_a_process_is_what_it_should_be(key: str) -> None:
    for odd in ODD:
        look_at(busy(), key, **{key: odd})


@pytest.mark.parametrize(
    ("figures", "sentence"),
    [
        ({"waiting": 10**400}, "pools[0].waiting is not a whole number between 0 and 2^53"),
        ({"in_use": True}, "pools[0].in_use is not a whole number"),
        ({"idle": 2.5}, "pools[0].idle is not a whole number"),
        ({"age": 10**400}, "pools[0].age is not a number between 0 and"),
        ({"longest_waiting": float("inf")}, "Infinity is not a number"),
        ({"age": float("nan")}, "NaN is not a number"),
        ({"alias": ["default"]}, "pools[0].alias is not a text"),
        ({"closed": {"\x1b[2J": -1}}, "pools[0].closed['\\\\x1b[2J'] is not a whole number"),
        ({"restarted": {"40001": {"again": "x"}}}, "pools[0].restarted['40001']['again'] is not"),
        ({"pinned": dict.fromkeys(map(str, range(501)), 1)}, "pools[0].pinned has more than 500"),
        ({"wait": {"buckets": [1, 10**30]}}, "pools[0].wait.buckets[1] is not a whole number"),
        ({"connections": [{}] * 10_001}, "pools[0].connections has more than 10000 entries"),
        ({"connections": [[]]}, "pools[0].connections[0] is not a dictionary"),
    ],
)
def test_what_is_wrong_with_an_answer_is_named(figures: dict[str, Any], sentence: str) -> None:
    answer = json.dumps(process({**busy(), **figures})).encode()
    with pytest.raises(InvalidAnswer) as refused:
        parse_report(answer)
    assert str(refused.value).startswith(sentence)


def test_texts_of_an_answer_can_do_no_harm_anywhere() -> None:
    odd = "\x1b[2J\ud800\u202e\r\nfine"
    strange = {**busy(), "last_error": odd, "server": odd, "name": odd, "pinned": {odd: 1}}
    strange["connections"][0].update(by=odd, where=odd, pinned_by=odd, doomed_by=odd, state=odd)
    text = written(seen(strange, command=odd, host=odd), seen(busy()))
    text.encode()  # Halves of characters could not be.
    assert all(line.isprintable() for line in text.split("\n"))


def test_what_is_not_known_is_left_out_and_what_is_known_is_kept() -> None:
    report = process({**busy(), "novelty": [float(1)]}, novelty={"x": 1})
    found = parse_report(json.dumps(report).encode()).as_json()
    assert "novelty" not in found
    assert found["pools"][0] == busy()


def test_a_clock_that_went_back_a_little_is_no_nonsense() -> None:
    report = parse_report(json.dumps(process({**busy(), "last_error_age": -1e-6})).encode())
    assert report.pools[0].last_error_age == 0.0


def test_an_answer_that_breaks_off_is_a_sentence(tmp_path: Path) -> None:
    folder = tmp_path / f"django_pooled-{os.geteuid()}"
    folder.mkdir(mode=0o700)
    half = json.dumps(process(busy())).encode()[:400]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(folder / "4121.00c0ffee.sock"))
        listener.listen()

        def answer() -> None:
            with listener.accept()[0] as client:
                client.sendall(half)

        thread = threading.Thread(target=answer)
        thread.start()
        found = collect(tmp_path, timeout=5.0)
        thread.join()
    assert found.problems == ["Process 4121 gave an answer that is not whole or not JSON."]


@pytest.mark.parametrize("pid", [-2, -(2**31), 2**31 - 1])
def test_a_number_that_a_pooler_made_up_is_no_nonsense(pid: int) -> None:
    report = process(pool(connections=[connection(pid)]))
    [found] = parse_report(json.dumps(report).encode()).pools[0].connections
    assert found["backend_pid"] == max(0, pid)

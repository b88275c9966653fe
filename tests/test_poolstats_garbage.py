"""Reports that no process of ours would make: nothing raises, whatever their figures are."""

from __future__ import annotations

import json
import os
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from django_pooled.poolstats.collect import collect, parse_report
from django_pooled.poolstats.difference import since
from django_pooled.poolstats.report import Look, as_table
from django_pooled.poolstats.server_view import ServerView, summed
from django_pooled.poolstats.sessions import Session
from django_pooled.poolstats.table import Layout
from django_pooled.poolstats.thresholds import Thresholds
from tests.looks import connection, overview, pool, process

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
    return overview(dict(parse_report(answer)), servers=[summed(view)])


def written(look: Overview, earlier: Overview) -> str:
    """Return everything that can be made of it."""
    look.taken = earlier.taken + 2.0
    recent = since(look, earlier)
    parts = []
    for one in (look, recent):
        made = Look(one, recent, Thresholds())
        parts += as_table(one, made.found, Layout(), recent=recent)
        parts += as_table(one, made.found, Layout(connections=True), recent=recent)
        parts.append(made.written("table", Layout(), check=True))
    assert not any("\x1b" in part for part in parts)
    parts += [made.written(how, Layout()) for how in ("json", "csv", "prometheus")]
    return "\n".join(parts)


@pytest.mark.parametrize("key", sorted(set(busy()) - set(REQUIRED)))
def test_any_figure_of_a_pool_may_be_anything(key: str) -> None:
    for odd in ODD:
        whole, strange = busy(), {**busy(), key: odd}
        assert "default" in written(seen(strange), seen(whole))
        assert "default" in written(seen(whole), seen(strange))
    lacking = busy()
    del lacking[key]
    assert "default" in written(seen(lacking), seen(busy()))


@pytest.mark.parametrize("key", sorted(connection(1)))
def test_any_figure_of_a_connection_may_be_anything(key: str) -> None:
    for odd in ODD:
        strange = busy()
        strange["connections"][0][key] = odd
        assert "default" in written(seen(strange), seen(busy()))


@pytest.mark.parametrize("key", ["in_use", "idle", "waiting", "max_size", "size"])
def test_gauges_may_be_any_number(key: str) -> None:
    for odd in (-1, 0, 10**30):
        assert "default" in written(seen({**busy(), key: odd}), seen(busy()))


@pytest.mark.parametrize("key", ["host", "threads", "age"])
def test_any_figure_of_a_process_may_be_anything(key: str) -> None:
    for odd in ODD:
        assert "default" in written(seen(busy(), **{key: odd}), seen(busy()))


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

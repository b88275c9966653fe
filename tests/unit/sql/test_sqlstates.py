from __future__ import annotations

import socket

import psycopg
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import InterfaceError, OperationalError
from psycopg import errors

from django_pooled.errors import CheckoutTimeout, Gauges
from django_pooled.pool.connect_errors import (
    AttemptFailed,
    answer_in,
    is_mistake,
    is_permanent_refusal,
    is_server_full,
)
from django_pooled.sql.sqlstates import is_connection_lost, is_server_away, named, sqlstate_of


def wrapped(error: Exception, by: type[Exception] = OperationalError) -> Exception:
    """Wrap an error as Django does."""
    try:
        try:
            raise error
        except Exception as inner:
            raise by(*inner.args) from inner
    except Exception as outer:
        return outer


saturated = CheckoutTimeout("full", alias="default", elapsed=1.0, gauges=Gauges(1, 0, 1, 0, 1))


def test_the_sqlstate_is_found_through_django_s_wrapping() -> None:
    assert sqlstate_of(wrapped(errors.DeadlockDetected())) == "40P01"
    assert sqlstate_of(wrapped(wrapped(errors.DeadlockDetected()), ValueError)) == "40P01"
    assert sqlstate_of(ValueError()) is None
    assert sqlstate_of(None) is None


def test_a_circle_of_causes_comes_to_an_end() -> None:
    error = ValueError()
    error.__cause__ = error
    assert sqlstate_of(error) is None


@pytest.mark.parametrize(
    "error",
    [
        errors.AdminShutdown(),
        errors.CrashShutdown(),
        errors.CannotConnectNow(),
        errors.ConnectionFailure(),
        errors.IdleSessionTimeout(),
        psycopg.OperationalError("consuming input failed: server closed the connection"),
        psycopg.OperationalError("the connection is closed"),
        psycopg.InternalError("received 2 results from command 'COMMIT'"),
    ],
)
def test_a_lost_connection_is_known(error: psycopg.Error) -> None:
    for shape in (error, wrapped(error)):
        assert is_connection_lost(shape)
        assert is_server_away(shape)


@pytest.mark.parametrize(
    "error",
    [
        errors.SerializationFailure(),
        errors.UniqueViolation(),
        errors.QueryCanceled(),
        errors.DiskFull(),
        psycopg.InterfaceError("the cursor is closed"),
        psycopg.ProgrammingError("the last operation didn't produce records"),
    ],
)
def test_other_errors_leave_the_connection_in_peace(error: psycopg.Error) -> None:
    for shape in (error, wrapped(error, InterfaceError)):
        assert not is_connection_lost(shape)
        assert not is_server_away(shape)


def test_a_server_that_turned_read_only_is_not_away() -> None:
    assert not is_server_away(wrapped(errors.ReadOnlySqlTransaction()))


def test_a_pool_s_error_means_that_the_database_is_away() -> None:
    assert is_server_away(saturated)
    assert is_server_away(wrapped(saturated, RuntimeError))
    assert not is_connection_lost(saturated)


@pytest.mark.parametrize(
    "words",
    [
        'FATAL:  password authentication failed for user "ada"',
        'FATAL:  Peer authentication failed for user "ada"',
        'FATAL:  role "ada" does not exist',
        'FATAL:  database "shop" does not exist',
        'FATAL:  no pg_hba.conf entry for host "10.0.0.1", user "ada", database "shop"',
        "server does not support SSL, but SSL was required",
        "SSL error: certificate verify failed",
        "fe_sendauth: no password supplied",
        "FATAL:  connection requires a valid client certificate",
        "SSL error: tlsv1 alert unknown ca",
        "SSL error: ssl/tls alert certificate expired",
        'authentication method requirement "md5" failed: server requested SASL authentication',
        'invalid sslmode value: "sometimes"',
        'invalid port number: "99999"',
        "could not match 3 port numbers to 1 hosts",
        "FATAL:  unsupported startup parameter: options",
    ],
)
def test_refusals_that_waiting_does_not_mend_are_known_by_their_words(words: str) -> None:
    assert is_permanent_refusal(psycopg.OperationalError(f"connection failed: {words}"))


@pytest.mark.parametrize(
    "words",
    [
        "Connection refused",
        "FATAL:  the database system is starting up",
        "FATAL:  the database system is shutting down",
        "FATAL:  sorry, too many clients already",
        "server closed the connection unexpectedly",
        "connection timeout expired",
        "failed to resolve host 'db': [Errno -2] Name or service not known",
        "FATAL:  Passwort-Authentifizierung fuer Benutzer >>ada<< fehlgeschlagen",
    ],
)
def test_everything_else_is_transient(words: str) -> None:
    assert not is_permanent_refusal(psycopg.OperationalError(f"connection failed: {words}"))


@pytest.mark.parametrize("other", ["Connection refused", "FATAL:  sorry, too many clients already"])
def test_of_several_hosts_one_that_may_come_back_makes_it_transient(other: str) -> None:
    error = psycopg.OperationalError(
        "multiple connection attempts failed. All failures were:\n"
        "- host: 'a': FATAL:  password authentication failed for user \"ada\"\n"
        f"- host: 'b': {other}"
    )
    assert not is_permanent_refusal(error)


@pytest.mark.parametrize(
    "words",
    [
        "FATAL:  sorry, too many clients already",
        "FATAL:  remaining connection slots are reserved for non-replication superuser connections",
        "FATAL:  remaining connection slots are reserved for roles with the SUPERUSER attribute",
        'FATAL:  too many connections for role "ada"',
        'FATAL:  too many connections for database "shop"',
        "FATAL:  no more connections allowed (max_client_conn)",
        "FATAL:  client connections exceeded (max_db_client_connections)",
        "FATAL:  server login has been failing, cached error: sorry, too many clients already "
        "(server_login_retry)",
        "FATAL:  Max client connections reached",
        "FATAL:  (EMAXCONN) max client connections reached, limit: 200",
    ],
)
def test_a_full_server_is_known_by_its_words_and_waiting_mends_it(words: str) -> None:
    error = psycopg.OperationalError(f"connection failed: {words}")
    assert is_server_full(error)
    assert is_server_full(wrapped(error))
    assert not is_permanent_refusal(error)


def test_a_full_server_is_known_by_its_sqlstate_where_there_is_one() -> None:
    assert is_server_full(errors.TooManyConnections("trop de connexions"))
    assert not is_server_full(errors.CannotConnectNow("sorry, too many clients already"))


@pytest.mark.parametrize(
    "error",
    [
        psycopg.OperationalError("connection failed: Connection refused"),
        psycopg.OperationalError("FATAL:  the database system is starting up"),
        psycopg.OperationalError("connection timeout expired"),
        psycopg.OperationalError("FATAL:  désolé, trop de clients sont déjà connectés"),
        OSError("too many clients already"),
    ],
)
def test_no_other_failure_is_taken_for_a_full_server(error: Exception) -> None:
    assert not is_server_full(error)


@pytest.mark.parametrize(("other", "full"), [("Connection refused", False), (None, True)])
def test_of_several_hosts_each_has_to_be_full(other: str | None, full: bool) -> None:
    crowded = "FATAL:  sorry, too many clients already"
    error = psycopg.OperationalError(
        "multiple connection attempts failed. All failures were:\n"
        f"- host: 'a': {crowded}\n- host: 'b': {other or crowded}"
    )
    assert is_server_full(error) is full


def test_errors_of_the_connection_s_own_configuration_are_permanent() -> None:
    assert is_permanent_refusal(errors.InvalidParameterValue())
    assert is_permanent_refusal(psycopg.ProgrammingError("invalid connection option"))
    assert not is_permanent_refusal(errors.AdminShutdown())
    assert not is_permanent_refusal(errors.TooManyConnections())


def test_credentials_that_cannot_be_fetched_for_the_network_s_sake_are_transient() -> None:
    assert not is_permanent_refusal(TimeoutError())
    assert not is_permanent_refusal(socket.gaierror())
    assert is_permanent_refusal(KeyError("token"))


def raised(error: Exception, *, during: Exception | None = None) -> Exception:
    """Return *error* as it is when it is raised while *during* is handled."""
    try:
        try:
            if during is not None:
                raise during
        finally:
            raise error
    except Exception as caught:
        return caught


def test_an_error_that_a_network_s_error_led_to_is_transient_whatever_its_type() -> None:
    assert not is_permanent_refusal(raised(KeyError("token"), during=ConnectionResetError()))
    assert not is_mistake(raised(TypeError("None"), during=socket.gaierror()))


@pytest.mark.parametrize("error", [ValueError(), KeyError(), RuntimeError(), Exception()])
def test_what_fetches_credentials_may_succeed_later_whatever_it_raised(error: Exception) -> None:
    assert not is_mistake(error)


@pytest.mark.parametrize("error", [TypeError(), NameError(), ImportError(), AttributeError()])
def test_an_error_of_the_code_that_fetches_credentials_stays(error: Exception) -> None:
    assert is_mistake(error)


def test_settings_that_are_wrong_stay_so_whatever_led_to_that() -> None:
    assert is_mistake(raised(ImproperlyConfigured(), during=FileNotFoundError()))


@pytest.mark.parametrize("permanent", [True, False])
def test_what_the_project_brings_says_itself_whether_waiting_helps(permanent: bool) -> None:
    failure = AttemptFailed("the check", errors.InvalidPassword(), permanent=permanent)
    assert is_permanent_refusal(failure) is permanent


@pytest.mark.parametrize(
    ("sqlstate", "words"),
    [
        ("40P01", "deadlock detected (40P01)"),
        ("25006", "read-only transaction (25006)"),
        ("57P01", "admin shutdown (57P01)"),
        ("53300", "too many connections (53300)"),
        ("XY123", "error XY123"),
    ],
)
def test_an_sqlstate_is_told_with_its_name(sqlstate: str, words: str) -> None:
    assert named(sqlstate) == words


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ('FATAL: password authentication failed for user "shop"', "refuses this role's password"),
        ("connection to server failed: fe_sendauth: no password supplied", "refuses this role's p"),
        ('FATAL: role "shop" does not exist', "does not know this role"),
        ('FATAL: no pg_hba.conf entry for host "10.0.0.1"', "refuses this role"),
        ('FATAL: database "shop" does not exist', "does not exist on its server (3D000)"),
        ("FATAL: sorry, too many clients already", "is full (53300)"),
        ('FATAL: too many connections for database "shop"', "is full (53300)"),
        ('FATAL: too many connections for role "shop"', "has no connection left for this role"),
        ("FATAL: remaining connection slots are reserved for roles", "is full (53300)"),
        ("FATAL: the database system is starting up", "is starting (57P03)"),
        ("FATAL: the database system is shutting down", "is shutting down (57P03)"),
        ("connection failed: Connection refused", "does not answer"),
        ("nothing came within 3 s", "does not answer"),
    ],
)
def test_a_server_that_refuses_is_not_said_to_be_silent(text: str, answer: str) -> None:
    assert answer_in(text).startswith(answer)

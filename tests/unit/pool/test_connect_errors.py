"""What is known of a refused login by its words: whether waiting helps, or other credentials."""

from __future__ import annotations

import psycopg
import pytest

from django_pooled.pool.connect_errors import (
    answer_in,
    is_permanent_refusal,
    is_server_full,
    refuses_credentials,
)


def refused(words: str) -> psycopg.OperationalError:
    """Return the error of a login, as libpq tells it: with the address, without a SQLSTATE."""
    return psycopg.OperationalError(
        f'connection failed: connection to server at "10.0.0.5", port 5432 failed: FATAL:  {words}'
    )


# Sources: Microsoft's documentation and its users' reports; AWS's "Troubleshooting for RDS Proxy";
# lib/supavisor/errors of Supavisor; proxy/src of Neon; Google's "Debug connection issues".
CREDENTIALS = [
    "The access token has expired. Please acquire a new token and retry.",
    "The access token does not have a valid audience claim. Please acquire a new token for the "
    'resource "https://ossrdbms-aad.database.windows.net".',
    'PAM authentication failed for user "shop"',
    "The IAM authentication failed for the role shop. Check the IAM token for this role and try "
    "again.",
    "The password that was provided for the role shop is wrong.",
    'Cloud SQL IAM user authentication failed for user "shop@example.iam"',
    "Tenant or user not found",
    "(ENOTFOUND) tenant/user postgres.abcdefgh not found",
    "password authentication failed for user 'shop'",
]
SETTINGS = [
    "Feature not supported: RDS Proxy currently doesn't support command-line options.",
    "Feature not supported: RDS Proxy currently doesn't support the option search_path.",
    "This RDS Proxy requires TLS connections.",
    "IAM is allowed only with SSL connections.",
    "This RDS proxy has no credentials for the role shop. Check the credentials for this role and "
    "try again.",
    'no pg_hba.conf entry for host "10.0.0.9", user "shop", database "shop", no encryption',
    "(ESSLREQUIRED) SSL connection is required for user: postgres",
    "(EADDRNOTALLOWED) address not in tenant allow_list: {10, 0, 0, 9}",
    "(ENOIDENTIFIER) no tenant identifier provided (external_id or sni_hostname required)",
    "Endpoint ID is not specified. Either please upgrade the postgres client library (libpq) for "
    "SNI support or pass the endpoint ID (first part of the domain name) as a parameter",
    "Control plane request failed: endpoint cannot be found",
    "Control plane request failed: endpoint is disabled",
    "This IP address 10.0.0.9 is not allowed to connect to this endpoint.",
    "connection is insecure (try using `sslmode=require`)",
    "Your account or project has exceeded the compute time quota. Upgrade your plan to increase "
    "limits.",
    'invalid integer value "5432x" for connection option "port"',
    "unsupported startup parameter in options: statement_timeout. Please use unpooled connection",
]
FULL = [
    'too many connections for role "shop"',
    "remaining connection slots are reserved for roles with privileges of the "
    '"pg_use_reserved_connections" role',
    "(EMAXCONNSESSION) max clients reached in session mode - max clients are limited to "
    "pool_size: 15",
    "MaxClientsInSessionMode: max clients reached - in Session mode max clients are limited to "
    "pool_size",
    "(EMAXCONN) max client connections reached, limit: 200",
    "(ECHECKOUTTIMEOUT) unable to check out connection from the pool after 60000ms in session mode",
    "The maximum number of client connections to the proxy exceeded 1000.",
    "Rate of connection to proxy exceeded 500.",
    "The IAM authentication failed because of too many competing requests.",
    "Timed-out waiting to acquire database connection.",
    "Too many connections to this endpoint. Please try again later.",
    "Failed to acquire permit to connect to the database. Too many database connection attempts "
    "are currently ongoing.",
]
PASSING = [
    "the database system is starting up",
    "Control plane request failed",
    "Control plane request failed: endpoint is temporarily unavailable. Check your quotas and/or "
    "contact our support.",
    "Couldn't connect to compute node",
    "Authentication timed out",
    "(ECIRCUITBREAKER) too many authentication failures, new connections are temporarily blocked",
    "(EAUTHQUERY) authentication query failed: tcp connect: connection refused",
]


@pytest.mark.parametrize("words", CREDENTIALS)
def test_refused_credentials_are_final_and_asked_for_anew(words: str) -> None:
    error = refused(words)
    assert (is_permanent_refusal(error), refuses_credentials(error)) == (True, True)
    assert not is_server_full(error)


@pytest.mark.parametrize("words", SETTINGS)
def test_what_the_settings_or_the_account_have_to_mend_is_final(words: str) -> None:
    error = refused(words)
    assert (is_permanent_refusal(error), refuses_credentials(error)) == (True, False)
    assert not is_server_full(error)


@pytest.mark.parametrize("words", FULL)
def test_a_lack_of_room_is_waited_out_and_asked_about_less_often(words: str) -> None:
    error = refused(words)
    assert (is_permanent_refusal(error), is_server_full(error)) == (False, True)
    assert not refuses_credentials(error)
    assert "53300" in answer_in(str(error))


@pytest.mark.parametrize("words", PASSING)
def test_what_passes_is_waited_out(words: str) -> None:
    error = refused(words)
    assert (is_permanent_refusal(error), is_server_full(error)) == (False, False)
    assert not refuses_credentials(error)

"""Tests of Django's that may fail or be skipped on this backend alone, each with its reason."""

from __future__ import annotations

from .comparison import Reason

__all__ = ["KNOWN", "KNOWN_IN_TRANSACTION_MODE"]

_DOCS = "https://docs.djangoproject.com/en/stable/ref/databases/"
_TESTS = "https://github.com/django/django/blob/main/tests/"

_PERSISTENT = Reason(
    "It gives the settings CONN_MAX_AGE, and then expects the thread's connection to stay with the "
    "thread. A pool refuses that setting, Django's own too.",
    f"{_DOCS}#connection-pool",
)
_PRIVATE = Reason(
    "It reads a private attribute of psycopg_pool's pool, and expects that CONN_HEALTH_CHECKS "
    "switches checks on and off. Here every checkout looks at the connection.",
    f"{_TESTS}backends/postgresql/tests.py",
)
_OGR = Reason(
    "It takes the name of a GDAL driver from a table by the name of the engine, and is skipped for "
    "engines that are not Django's own.",
    f"{_TESTS}gis_tests/inspectapp/tests.py",
)

KNOWN: dict[str, Reason] = {
    **{
        f"backends.base.test_base.ConnectionHealthChecksTests.{name}": _PERSISTENT
        for name in (
            "test_health_checks_disabled",
            "test_health_checks_enabled",
            "test_health_checks_enabled_errors_occurred",
            "test_set_autocommit_health_checks_enabled",
        )
    },
    "backends.postgresql.tests.Tests.test_pool_check_can_be_overridden": _PRIVATE,
    "backends.postgresql.tests.Tests.test_pooling_health_checks": _PRIVATE,
    "gis_tests.inspectapp.tests.OGRInspectTest.test_time_field": _OGR,
}

_HELD = Reason(
    "It counts on a thread's connection staying with the thread outside of transactions, which is "
    "what transaction mode is there to change.",
    f"{_TESTS}backends/tests.py",
)
_SET_UP = Reason(
    "It sends a query along with each connection that is set up, and counts on the next statement "
    "finding that connection in place. In transaction mode it comes with a checkout of its own.",
    f"{_TESTS}test_utils/tests.py",
)

#: What cannot be where a connection stays for a transaction or a statement.
KNOWN_IN_TRANSACTION_MODE: dict[str, Reason] = {
    "backends.tests.ThreadTests.test_default_connection_thread_local": _HELD,
    "test_utils.tests.AssertNumQueriesUponConnectionTests."
    "test_ignores_connection_configuration_queries": _SET_UP,
}

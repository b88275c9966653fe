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
    "backends.postgresql.tests.Tests.test_pooling_health_checks": _PRIVATE,
    "gis_tests.inspectapp.tests.OGRInspectTest.test_time_field": _OGR,
}

#: What session state makes impossible there.
KNOWN_IN_TRANSACTION_MODE: dict[str, Reason] = {}

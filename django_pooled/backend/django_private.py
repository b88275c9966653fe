"""Private names of Django that are needed here, each with the reason.

A name that is gone is found out as this module is loaded; when what a name stands for changes, the
tests of this module fail.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django_pooled.diagnostics.required_packages import missing_package, refusal

# Before Django's engine, which would name no package of ours.
if (_missing := missing_package()) is not None:
    raise refusal(_missing)

from django.db import transaction, utils
from django.db.backends.postgresql import base as postgresql

from django_pooled.diagnostics.required_names import Need, needed_of, require

with needed_of("django"):
    from django.db.backends.base import base
    from django.db.backends.postgresql import psycopg_any

if TYPE_CHECKING:
    from django.http import HttpResponse

__all__ = [
    "CONFIGURE_CONNECTION",
    "CONFIGURE_ROLE",
    "NON_ATOMIC_REQUESTS",
    "NO_DB_ALIAS",
    "Cursor",
    "CursorMixin",
    "DatabaseErrorWrapper",
    "ServerBindingCursor",
    "ServerSideCursor",
    "get_adapters_template",
    "is_block_of_test_case",
    "is_refused_as_durable",
    "register_tzloader",
    "turn_autocommit_off",
]


@transaction.non_atomic_requests
def _marked_view() -> HttpResponse:
    """Never called: it has the mark that Django gives a view."""
    raise NotImplementedError


require(
    "django",
    (
        Need(base, "NO_DB_ALIAS", "know the connections that are for maintenance"),
        Need(psycopg_any, "register_tzloader", "give rows of server-side cursors a time zone"),
        Need(psycopg_any, "get_adapters_template", "have one pool where threads begin together"),
        Need(utils, "DatabaseErrorWrapper", "see each error of the database"),
        Need(
            postgresql,
            "Cursor ServerBindingCursor ServerSideCursor CursorMixin",
            "have the connection see each statement",
        ),
        Need(postgresql.DatabaseWrapper, "_close", "give connections back to the pool"),
        Need(
            postgresql.DatabaseWrapper,
            "_configure_connection _configure_role _configure_timezone",
            "configure a new connection",
        ),
        Need(
            postgresql.DatabaseWrapper,
            "_commit _rollback _savepoint _savepoint_commit _savepoint_rollback",
            "know how a transaction ends",
        ),
        Need(postgresql.DatabaseWrapper, "_set_autocommit", "begin a block on a new connection"),
        Need(_marked_view, "_non_atomic_requests", "keep views out of ATOMIC_REQUESTS"),
        Need(transaction.atomic(), "_from_testcase", "run in the transaction of a TestCase"),
    ),
)

# The methods that a backend built on another overrides to configure its connections. Django calls
# them for a connection that it has opened itself; the pool opens its own.
CONFIGURE_CONNECTION = "_configure_connection"
CONFIGURE_ROLE = "_configure_role"

# The attribute of a view with the databases in which the handler opens no transaction around it.
# non_atomic_requests() adds one alias at a time, to a set that wraps() lets views share.
NON_ATOMIC_REQUESTS = "_non_atomic_requests"

NO_DB_ALIAS: str = base.NO_DB_ALIAS
get_adapters_template: Any = psycopg_any.get_adapters_template
register_tzloader: Any = psycopg_any.register_tzloader
Cursor = postgresql.Cursor
CursorMixin = postgresql.CursorMixin
DatabaseErrorWrapper = utils.DatabaseErrorWrapper
ServerBindingCursor = postgresql.ServerBindingCursor
ServerSideCursor = postgresql.ServerSideCursor


def turn_autocommit_off(wrapper: base.BaseDatabaseWrapper) -> None:
    """Do as Django's set_autocommit(False), which would log BEGIN, but leave its flag alone."""
    wrapper._set_autocommit(False)  # type: ignore[attr-defined]


def is_block_of_test_case(block: transaction.Atomic) -> bool:
    """Tell whether a TestCase has opened *block*, around a test or a class, and rolls it back."""
    # There is no public sign of it. An atomic block with durable=True looks at the same attribute.
    return bool(block._from_testcase)  # type: ignore[attr-defined]


def is_refused_as_durable(error: BaseException | None) -> bool:
    """Tell whether an atomic block with durable=True has refused to begin within another."""
    # Django raises a RuntimeError without a class of its own, before anything is sent.
    while error is not None:
        if type(error) is RuntimeError and str(error).startswith("A durable atomic block"):
            return True
        error = error.__cause__ or error.__context__
    return False

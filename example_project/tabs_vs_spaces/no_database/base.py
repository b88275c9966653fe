"""Stands in while neither DATABASE_URL is set nor an embedded server running."""

from __future__ import annotations

from typing import Any, NoReturn

from django.core.management import CommandError
from django.db.backends.dummy import base


def _complain(*args: Any, **kwargs: Any) -> NoReturn:
    # A CommandError is printed as one line, without a trace.
    raise CommandError(
        "There is no database to talk to. Either start the example with "
        "'manage.py serve', which brings its own PostgreSQL, and run this beside it in a "
        "second terminal; or set DATABASE_URL."
    )


class DatabaseWrapper(base.DatabaseWrapper):
    """Django's own dummy, with our words."""

    ensure_connection = _complain
    _cursor = _complain
    _commit = _complain
    _rollback = _complain
    _savepoint = _complain
    _set_autocommit = _complain

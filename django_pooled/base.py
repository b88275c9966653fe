"""The name that Django loads for ``ENGINE = "django_pooled"``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db.backends.base.validation import BaseDatabaseValidation

from .backend import wrapper
from .backend.open_at_start import arrange
from .backend.startup import refuse_bad_settings

if TYPE_CHECKING:
    from django.core.checks import CheckMessage

__all__ = ["DatabaseWrapper"]


class DatabaseValidation(BaseDatabaseValidation):
    """What ``manage.py check --database`` asks, whether or not the app is installed.

    ``migrate`` and Django's test runner ask for it, too.
    """

    connection: DatabaseWrapper

    def check(self, **kwargs: Any) -> list[CheckMessage]:
        """Return Django's own messages and ours. A server that is away is a warning."""
        # Here, since a worker has no use for the system checks, nor for poolstats, which they read.
        from .checks.server import check_app, check_server

        return [*super().check(**kwargs), *check_app(), *check_server(self.connection)]


class DatabaseWrapper(wrapper.DatabaseWrapper):
    """One thread's view of a database; its connection comes from the process's pool.

    It takes its place in front of another backend over Django's PostgreSQL backend::

        class DatabaseWrapper(django_pooled.base.DatabaseWrapper, other.DatabaseWrapper): ...

    What that one has to do once for each connection goes into ``_configure_connection()``, which
    the pool calls when it has opened one; its ``get_new_connection()`` is left out.
    """

    validation_class: type[DatabaseValidation] = DatabaseValidation
    """What ``check --database`` asks of the server."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        refuse_bad_settings()
        arrange()
        super().__init__(*args, **kwargs)

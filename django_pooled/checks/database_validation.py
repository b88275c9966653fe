"""What ``manage.py check --database`` asks of this backend, whether or not the app is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db.backends.base.validation import BaseDatabaseValidation

if TYPE_CHECKING:
    from django.core.checks import CheckMessage

    from django_pooled.backend.wrapper import DatabaseWrapper

__all__ = ["DatabaseValidation"]


class DatabaseValidation(BaseDatabaseValidation):
    """Checks a database; ``migrate`` and Django's test runner ask for it, too."""

    connection: DatabaseWrapper

    def check(self, **kwargs: Any) -> list[CheckMessage]:
        """Return Django's own messages and ours. A server that is away is a warning."""
        # Here, since it imports the reading side of poolstats, of which a worker has no use.
        from .server import check_app, check_server

        return [*super().check(**kwargs), *check_app(), *check_server(self.connection)]

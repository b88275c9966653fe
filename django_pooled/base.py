"""The name that Django loads for ``ENGINE = "django_pooled"``."""

from __future__ import annotations

from typing import Any

from .backend import wrapper
from .backend.startup import refuse_bad_settings
from .checks.database_validation import DatabaseValidation

__all__ = ["DatabaseWrapper"]


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
        super().__init__(*args, **kwargs)

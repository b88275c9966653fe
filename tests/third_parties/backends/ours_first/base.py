"""This engine before theirs."""

from __future__ import annotations

from django_pooled.base import DatabaseWrapper as Pooled
from tests.third_parties.backends import theirs


class DatabaseWrapper(Pooled, theirs.DatabaseWrapper):
    """Asks the pool, then theirs, then Django."""

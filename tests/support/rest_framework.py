"""For tests with Django REST framework, which has to be installed."""

from __future__ import annotations

from typing import Any

from django.db import DatabaseError
from rest_framework.response import Response

__all__ = ["answer_for"]


def answer_for(error: Exception, context: Any) -> Response | None:
    """Turn the database's errors into responses, as many projects do."""
    if isinstance(error, DatabaseError):
        return Response({"detail": str(error)}, status=503)
    return None

"""What puts load on the pool."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.contrib.auth.decorators import login_not_required
from django.db import connection, transaction
from django.http import HttpResponse

from django_pooled import retry_transaction
from django_pooled.testing import fail_next_transaction

if TYPE_CHECKING:
    from django.http import HttpRequest


@login_not_required
def hold(request: HttpRequest, seconds: str) -> HttpResponse:
    """Have a connection in use for so long."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(%s)", [float(seconds)])
    return HttpResponse("held")


@login_not_required
def write(request: HttpRequest) -> HttpResponse:
    """Write, as far as the server lets it."""
    with connection.cursor() as cursor:
        cursor.execute("UPDATE auth_user SET last_name = last_name WHERE false")
    return HttpResponse("written")


@retry_transaction
def _again() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")


@login_not_required
@transaction.non_atomic_requests
def conflict(request: HttpRequest) -> HttpResponse:
    """Have a transaction restarted."""
    with fail_next_transaction("40001"):
        _again()
    return HttpResponse("done")


@login_not_required
@transaction.non_atomic_requests
def lost(request: HttpRequest) -> HttpResponse:
    """Have the answer to a COMMIT lost."""
    with fail_next_transaction(None, phase="answer"):
        _again()
    return HttpResponse("done")

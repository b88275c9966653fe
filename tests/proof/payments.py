"""A site whose only view makes a payment for each key, for clients that resend."""

from __future__ import annotations

import json
import os

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application

settings.configure(
    ALLOWED_HOSTS=["*"],
    DATABASES={"default": json.loads(os.environ["PROOF_DATABASE"])},
    INSTALLED_APPS=["django_pooled", "django_pooled.tokens"],
    LOGGING_CONFIG=None,
    MIDDLEWARE=["django_pooled.middleware.DatabaseUnavailableMiddleware"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="only for tests",
    USE_TZ=True,
)
django.setup()

from django.db import connection  # noqa: E402
from django.http import HttpRequest, JsonResponse  # noqa: E402
from django.urls import path  # noqa: E402

from django_pooled import Backoff, retry_transaction  # noqa: E402

SLOTS = 4


@retry_transaction(
    idempotency_key=os.environ.get("PROOF_HEADER", "Idempotency-Key"),
    deadline=15.0,
    max_attempts=30,
    backoff=Backoff(initial=0.005, maximum=0.1),
)
def pay(request: HttpRequest) -> JsonResponse:
    """Note the payment, raise a counter that others raise too, and answer with the number."""
    key = request.POST["payment"]
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO done VALUES (%s)", [key])
        cursor.execute("SELECT pg_sleep(random() * 0.03)")
        cursor.execute(
            "UPDATE counter SET value = value + 1 WHERE slot = %s RETURNING value",
            [sum(key.encode()) % SLOTS],
        )
        (value,) = cursor.fetchone()
    return JsonResponse({"payment": key, "value": value}, status=201)


urlpatterns = [path("pay", pay)]
application = get_wsgi_application()

if __name__ == "__main__":
    from django.core.management import call_command

    call_command("migrate", verbosity=0)

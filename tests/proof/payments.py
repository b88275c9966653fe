"""A site whose only view makes a payment for each key, for clients that resend."""

from __future__ import annotations

import json
import os
import uuid

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application

settings.configure(
    ALLOWED_HOSTS=["*"],
    DATABASES={"default": json.loads(os.environ["PROOF_DATABASE"])},
    INSTALLED_APPS=["django_pooled", "django_pooled.tokens"],
    # What was found out about each COMMIT without an answer is counted.
    LOGGING={
        "version": 1,
        "handlers": {"console": {"class": "logging.StreamHandler"}},
        "loggers": {"django_pooled.retry": {"handlers": ["console"], "level": "INFO"}},
    },
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
    """Note the payment, raise a counter that others raise too, and answer as no other run does."""
    key = request.POST["payment"]
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO done VALUES (%s)", [key])
        cursor.execute("SELECT pg_sleep(random() * 0.03)")
        cursor.execute(
            "UPDATE counter SET value = value + 1 WHERE slot = %s", [sum(key.encode()) % SLOTS]
        )
    return JsonResponse({"payment": key, "receipt": uuid.uuid4()}, status=201)


urlpatterns = [path("pay", pay)]
application = get_wsgi_application()

if __name__ == "__main__":
    from django.core.management import call_command

    call_command("migrate", verbosity=0)

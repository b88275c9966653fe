"""Ways of retrying a transaction, each in a process of its own that makes a call for each line.

    python _contestants.py NAME

It prints "ready", or why it cannot take part; then for each line it reads, what the caller of one
more increment was told: "done", "unknown", or "failed" with the error.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any

import psycopg

if TYPE_CHECKING:
    from collections.abc import Callable

ATTEMPTS = 5
INCREMENT = "UPDATE counter SET n = n + 1"


class Unknown(Exception):
    """Whether the call took effect cannot be told."""


def naive(database: dict[str, Any]) -> Callable[[], None]:
    """Django's own engine, and everything again after any OperationalError."""
    configure(database, "django.db.backends.postgresql")
    from django.db import OperationalError, connection, transaction

    def call() -> None:
        for left in reversed(range(ATTEMPTS)):
            try:
                with transaction.atomic(), connection.cursor() as cursor:
                    cursor.execute(INCREMENT)
                return
            except OperationalError:
                connection.close()
                if not left:
                    raise

    return call


def pgtransaction(database: dict[str, Any], **settings: Any) -> Callable[[], None]:
    """django-pgtransaction as it comes: it restarts after 40001 and 40P01."""
    configure(database, "django.db.backends.postgresql", **settings)
    from django.db import connection
    from pgtransaction import atomic

    @atomic(retry=ATTEMPTS - 1)
    def call() -> None:
        with connection.cursor() as cursor:
            cursor.execute(INCREMENT)

    return call


def pgtransaction_told(database: dict[str, Any]) -> Callable[[], None]:
    """django-pgtransaction that was told to restart after lost connections, too."""
    return pgtransaction(
        database,
        PGTRANSACTION_RETRY_EXCEPTIONS=(psycopg.OperationalError, psycopg.errors.AdminShutdown),
    )


def xact_status(database: dict[str, Any]) -> Callable[[], None]:
    """psycopg alone, with what PostgreSQL's manual offers: ask for the transaction's status."""
    parameters = {
        "host": database["HOST"],
        "port": database["PORT"],
        "user": database["USER"],
        "password": database["PASSWORD"],
        "dbname": database["NAME"],
    }

    def status(xid: str) -> str | None:
        while True:
            with psycopg.connect(**parameters, autocommit=True) as connection:
                row = connection.execute("SELECT pg_xact_status(%s::xid8)", [xid]).fetchone()
            if row is None or row[0] != "in progress":
                return row[0] if row else None
            time.sleep(0.05)

    def call() -> None:
        for _ in range(ATTEMPTS):
            xid = None
            connection = psycopg.connect(**parameters)
            try:
                connection.execute(INCREMENT)
                row = connection.execute("SELECT pg_current_xact_id()::text").fetchone()
                xid = row[0] if row else None
                connection.commit()
                return
            except psycopg.OperationalError:
                if xid is not None and (found := status(xid)) != "aborted":
                    if found == "committed":
                        return
                    raise Unknown from None
            finally:
                connection.close()
        raise psycopg.OperationalError("attempts ended")

    return call


def ours(database: dict[str, Any], commit_check: str) -> Callable[[], None]:
    """``retry_transaction`` with this ``commit_check``."""
    configure(database, "django_pooled")
    from django.core.management import call_command
    from django.db import connection

    from django_pooled import AmbiguousCommit, retry_transaction

    def increment() -> None:
        with connection.cursor() as cursor:
            cursor.execute(INCREMENT)

    # A mode that this version does not have raises ValueError here.
    decorated = retry_transaction(commit_check=commit_check, max_attempts=ATTEMPTS)(increment)
    if commit_check == "token":
        call_command("migrate", verbosity=0)

    def call() -> None:
        try:
            decorated()
        except AmbiguousCommit:
            raise Unknown from None
        finally:
            connection.close()

    return call


CONTESTANTS: dict[str, Callable[[dict[str, Any]], Callable[[], None]]] = {
    "naive retry": naive,
    "django-pgtransaction": pgtransaction,
    "django-pgtransaction, told": pgtransaction_told,
    "pg_xact_status by hand": xact_status,
    **{
        f"django_pooled, {mode}": lambda database, mode=mode: ours(database, mode)
        for mode in ("xid", "token", "raise", "idempotent")
    },
}


def configure(database: dict[str, Any], engine: str, **settings: Any) -> None:
    """Set up Django with this engine."""
    import logging

    import django
    from django.conf import settings as django_settings

    apps = []
    if engine == "django_pooled":
        apps = [
            app
            for app in ("django_pooled", "django_pooled.tokens")
            if importlib.util.find_spec(app)
        ]
    django_settings.configure(
        DATABASES={"default": {"ENGINE": engine, **database}}, INSTALLED_APPS=apps, **settings
    )
    django.setup()
    logging.getLogger("django_pooled").setLevel(logging.CRITICAL)


def main() -> None:
    """Prepare, then answer each line."""
    try:
        call = CONTESTANTS[sys.argv[1]](json.loads(os.environ["BENCHMARK_DATABASE"]))
    except Exception as error:
        print(f"{type(error).__name__}: {error}".partition("\n")[0], flush=True)
        return
    print("ready", flush=True)
    for _ in sys.stdin:
        try:
            call()
        except Unknown:
            print("unknown", flush=True)
        except Exception as error:
            print(f"failed {type(error).__name__}: {error}".partition("\n")[0], flush=True)
        else:
            print("done", flush=True)


if __name__ == "__main__":
    main()

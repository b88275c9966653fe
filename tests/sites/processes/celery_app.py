"""A Celery application whose broker is a folder, and the tasks that tests send."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
from asgiref.sync import async_to_sync, sync_to_async
from celery import Celery  # type: ignore[import-not-found,import-untyped,unused-ignore]
from django.db import connection, transaction

from django_pooled import registry, retry_transaction
from tests.support.waiting import wait_until

FOLDER = Path(os.environ.get("CELERY_FOLDER", "."))
SAID = "said"


def configuration(folder: Path) -> dict[str, Any]:
    """Return what both ends of a queue need, which lives in a folder."""
    return {
        "broker_url": "filesystem://",
        "broker_transport_options": {
            "data_folder_in": str(folder / "queue"),
            "data_folder_out": str(folder / "sent"),
            "control_folder": str(folder / "control"),
            "polling_interval": 0.02,
        },
        "task_ignore_result": True,
        # A worker takes all there is, instead of looking into the folder again for each task.
        "worker_prefetch_multiplier": 0,
    }


def _backend() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return int(cursor.fetchone()[0])


def _say(**what: Any) -> None:
    # One write in append mode: the lines of several processes don't mix.
    line = json.dumps({"pid": os.getpid(), "at": time.monotonic(), **what}) + "\n"
    with (FOLDER / SAID).open("ab", buffering=0) as said:
        said.write(line.encode())


app = Celery("tests.sites.processes.celery_app")
app.conf.update(configuration(FOLDER))

if os.environ.get("USE_DATABASE_AT_IMPORT"):
    _say(at_import=_backend())


@app.task  # type: ignore[untyped-decorator,unused-ignore]
def use(number: int) -> None:
    """Say which backend served the task."""
    _say(number=number, backend=_backend())


@app.task  # type: ignore[untyped-decorator,unused-ignore]
def fail(number: int) -> None:
    """Leave a transaction by an exception."""
    with transaction.atomic():
        _say(number=number, backend=_backend())
        raise ValueError("on purpose")


@app.task  # type: ignore[untyped-decorator,unused-ignore]
def leave_open(number: int) -> None:
    """End the task and not the transaction."""
    connection.set_autocommit(False)
    _say(number=number, backend=_backend())


@app.task  # type: ignore[untyped-decorator,unused-ignore]
def sleep(number: int, seconds: float) -> None:
    """Have the database wait."""
    started = time.monotonic()
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid() FROM pg_sleep(%s)", [seconds])
        (backend,) = cursor.fetchone()
    _say(number=number, backend=backend, started=started)


@app.task  # type: ignore[untyped-decorator,unused-ignore]
def hold(number: int) -> None:
    """Say how many connections are in use after a query, and after one in a thread of its own."""
    found = [_backend(), _in_use()]
    with ThreadPoolExecutor(1) as thread:
        thread.submit(_backend).result()
        found.append(_in_use())
    _say(number=number, backend=found[0], in_use=found[1:])


@app.task  # type: ignore[untyped-decorator,unused-ignore]
def hold_in_thread(number: int) -> None:
    """As `hold`, as a call and not as a task, in a thread of its own."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(hold.apply, [number]).result()


_attempts: Counter[int] = Counter()


def _execute(statement: str, *parameters: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)


@retry_transaction
async def _insert(number: int) -> int:
    """Insert a row; lose the session the first time. Return the backend that did it."""
    _attempts[number] += 1
    await sync_to_async(_execute)("INSERT INTO done VALUES (%s)", number)
    await asyncio.sleep(0.01)
    if _attempts[number] == 1:
        await sync_to_async(_execute)("SELECT pg_terminate_backend(pg_backend_pid())")
    return await sync_to_async(_backend)()


@app.task  # type: ignore[untyped-decorator,unused-ignore]
def run_coroutine(number: int, way: str) -> None:
    """Query, and then run a decorated coroutine; say in how many attempts that was done."""
    _backend()
    backend = asyncio.run(_insert(number)) if way == "run" else async_to_sync(_insert)(number)
    _say(number=number, backend=backend, attempts=_attempts[number], in_use=_in_use())


def _in_use() -> int:
    return sum(pool.in_use for pool in registry.snapshots())


@app.task  # type: ignore[untyped-decorator,unused-ignore]
def close_the_pool(number: int) -> None:
    """Close the pool as one has to before a database can be dropped; say whether it went."""
    backend = _backend()
    parameters = connection.get_connection_params()
    connection.close()
    connection.close_pool()  # type: ignore[attr-defined]
    outside = {key: parameters[key] for key in ("host", "port", "user", "password")}
    with psycopg.connect(**outside, dbname="postgres", autocommit=True) as other:
        query = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s"
        wait_until(lambda: other.execute(query, [backend]).fetchone() == (0,))
    _say(number=number, backend=_backend(), before=backend)

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from django.db import Error, OperationalError, close_old_connections, connections, models
from psycopg import sql

from django_pooled import retry_transaction
from django_pooled.testing import fail_next_transaction
from tests.support.attempts import QUICK
from tests.support.pools import in_use

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from embedded_postgres import EmbeddedServer
    from tests.support.pools import MakeDatabase

MODES: list[dict[str, Any]] = [
    {"pool_mode": "session"},
    {"pool_mode": "transaction"},
    {"pool_mode": "session", "reset": "rollback"},
    {"pool_mode": "session", "reset": "discard"},
]


class Job(models.Model):
    """A row that is done once."""

    done = models.IntegerField(default=0)

    # Said, since mypy's plugin knows the models of apps alone.
    objects: models.Manager[Job] = models.Manager()

    class Meta:
        app_label = "app"
        db_table = "held_job"
        managed = False

    def __str__(self) -> str:
        return f"job {self.pk}"


@pytest.fixture(params=MODES, ids=str)
def alias(
    request: pytest.FixtureRequest, server: EmbeddedServer, make_database: MakeDatabase
) -> str:
    """A database with a table."""
    made = make_database(server, max_size=2, **request.param)
    execute(made, "DROP TABLE IF EXISTS held_job")
    execute(made, "CREATE TABLE held_job AS SELECT id, 0 AS done FROM generate_series(1, 9) AS id")
    connections[made].close()
    return made


def execute(alias: str, statement: Any) -> Any:
    with connections[alias].cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchone()[0] if cursor.description else None


def do(alias: str, fail: Callable[[], object] | None = None, **options: Any) -> list[int]:
    """Run a call that fails once; return how many connections were in use while it waited."""
    held: list[int] = []

    def wait(seconds: float) -> None:
        held.append(in_use(alias))

    def body() -> None:
        if fail is not None and not held:
            fail()
        execute(alias, "SELECT 1")

    call = retry_transaction(using=alias, backoff=QUICK, sleep=wait, **options)(body)
    if fail is not None:
        call()
        return held
    with fail_next_transaction("40P01", using=alias) as fault:
        call()
    assert fault.struck == 1
    return held


def end_session(alias: str) -> None:
    with suppress(OperationalError):
        execute(alias, "SELECT pg_terminate_backend(pg_backend_pid())")


def done(alias: str) -> list[int]:
    return list(Job.objects.using(alias).order_by("id").values_list("done", flat=True))


@pytest.mark.parametrize("chunk", [1, 4])
def test_an_iterator_of_the_caller_goes_on_after_a_restart(alias: str, chunk: int) -> None:
    for job in Job.objects.using(alias).order_by("id").iterator(chunk_size=chunk):

        def finish(key: int = job.pk) -> None:
            Job.objects.using(alias).filter(pk=key).update(done=models.F("done") + 1)

        with fail_next_transaction("40P01", using=alias):
            retry_transaction(using=alias, backoff=QUICK)(finish)()
    assert done(alias) == [1] * 9


def test_an_iterator_that_has_ended_keeps_nothing(alias: str) -> None:
    list(Job.objects.using(alias).iterator(chunk_size=2))
    assert do(alias) == [0]


@pytest.mark.parametrize("fetched", [1, 9])
def test_a_cursor_of_the_caller_goes_on_after_a_restart(alias: str, fetched: int) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT id FROM held_job ORDER BY id")
        cursor.fetchmany(fetched)
        do(alias)
        assert len(cursor.fetchall()) == 9 - fetched
        cursor.execute("SELECT count(*) FROM held_job")
        assert cursor.fetchone() == (9,)


def test_a_cursor_that_was_closed_or_dropped_keeps_nothing(alias: str) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT 1")
    dropped = connections[alias].cursor()
    dropped.execute("SELECT 1")
    del dropped
    assert do(alias) == [0]


def test_without_anything_of_the_callers_the_connection_goes_back(alias: str) -> None:
    execute(alias, "SELECT count(*) FROM held_job")
    execute(alias, "UPDATE held_job SET done = 0")
    assert do(alias) == [0]


def test_an_iterator_that_was_lost_with_its_connection_fails_and_reads_on_no_other(
    alias: str,
) -> None:
    rows = Job.objects.using(alias).order_by("id").iterator(chunk_size=1)
    next(rows)
    # The call itself does not need it.
    assert do(alias, lambda: end_session(alias)) == [0]
    execute(alias, "SELECT 1")
    with pytest.raises((Error, psycopg.Error)):
        next(rows)


def test_rows_that_a_cursor_of_the_caller_has_are_there_after_its_connection_was_lost(
    alias: str,
) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT id FROM held_job ORDER BY id")
        assert do(alias, lambda: end_session(alias)) == [0]
        assert len(cursor.fetchall()) == 9


def noted(error: BaseException, reason: str) -> None:
    # Python 3.10 has no notes.
    if hasattr(error, "add_note"):
        [note] = getattr(error, "__notes__", [])
        assert note.endswith(f"not restarted: {reason}")


STATES: dict[str, tuple[Any, str]] = {
    "lock": ("SELECT pg_advisory_lock(11)", "SELECT pg_advisory_unlock(11)"),
    "shared lock": (
        sql.SQL("SELECT pg_try_advisory_lock_shared({})").format(12),
        "SELECT pg_advisory_unlock_shared(12)",
    ),
    "setting": ("SET app.tenant = 'ada'", "SELECT current_setting('app.tenant') = 'ada'"),
    "role": ("SET ROLE pg_monitor", "SELECT current_user = 'pg_monitor'"),
    "bytes": (b"/* x */ SET app.tenant = 'ada'", "SELECT current_setting('app.tenant') = 'ada'"),
    "table": ("CREATE TEMPORARY TABLE mine AS SELECT 1", "SELECT true FROM mine"),
    "prepared": ("PREPARE mine AS SELECT true", "EXECUTE mine"),
    "channel": ("LISTEN mine", "SELECT count(*) = 1 FROM pg_listening_channels()"),
    "procedural": (
        "DO $$ BEGIN PERFORM set_config('app.tenant', 'ada', false); END $$",
        "SELECT current_setting('app.tenant') = 'ada'",
    ),
}


@pytest.mark.parametrize("form", STATES)
def test_what_the_caller_has_set_up_in_its_session_is_there_after_a_restart(
    alias: str, form: str
) -> None:
    give, have = STATES[form]
    execute(alias, give)
    assert do(alias) == [1]
    assert execute(alias, have) is True


def test_another_thread_gets_neither_lock_nor_setting_of_a_caller_that_waits(alias: str) -> None:
    execute(alias, "SELECT pg_advisory_lock(13)")
    execute(alias, "SET app.tenant = 'ada'")
    found: list[Any] = []

    def look() -> None:
        try:
            found.append(execute(alias, "SELECT pg_try_advisory_lock(13)"))
            found.append(execute(alias, "SELECT current_setting('app.tenant', true)"))
        finally:
            connections.close_all()

    def wait(seconds: float) -> None:
        thread = threading.Thread(target=look)
        thread.start()
        thread.join(30)

    with fail_next_transaction("40P01", using=alias):
        retry_transaction(using=alias, backoff=QUICK, sleep=wait)(
            lambda: execute(alias, "SELECT 1")
        )()
    assert found[0] is False
    assert found[1] in (None, "")
    assert execute(alias, "SELECT pg_advisory_unlock(13)") is True


def test_a_call_is_not_restarted_without_the_lock_that_its_caller_had(alias: str) -> None:
    execute(alias, "SELECT pg_advisory_lock(14)")
    with pytest.raises(OperationalError) as raised:
        do(alias, lambda: end_session(alias))
    noted(raised.value, "session state of the caller (ADVISORY LOCK) was lost with the connection")


@pytest.mark.parametrize(
    ("statement", "restarted"),
    [
        ("SET statement_timeout = '30s'", True),
        ("set session lock_timeout to 5000;", True),
        ("SET idle_session_timeout = DEFAULT", True),
        ("SET statement_timeout = '30s'; SET app.tenant = 'ada'", False),
        ("SET search_path = pg_catalog", False),
    ],
)
def test_a_time_limit_that_was_lost_is_no_obstacle(
    alias: str, statement: str, restarted: bool
) -> None:
    execute(alias, statement)
    if restarted:
        assert do(alias, lambda: end_session(alias)) == [0]
    else:
        with pytest.raises(OperationalError):
            do(alias, lambda: end_session(alias))


@pytest.mark.parametrize("ends", ["request", "connection"])
def test_a_caller_whose_lock_went_with_the_answer_to_commit_cannot_go_on_without(
    alias: str, ends: str
) -> None:
    execute(alias, "SELECT pg_advisory_lock(16)")

    @retry_transaction(using=alias, backoff=QUICK)
    def finish() -> None:
        Job.objects.using(alias).update(done=models.F("done") + 1)

    with fail_next_transaction(None, using=alias, phase="answer"):
        finish()
    with pytest.raises(Error):
        execute(alias, "SELECT 1")
    with pytest.raises(Error):
        finish()
    if ends == "request":
        close_old_connections()
    else:
        connections[alias].close()
    assert done(alias) == [1] * 9


def test_what_an_attempt_itself_sets_up_does_not_keep_the_connection(alias: str) -> None:
    held: list[int] = []

    def body() -> None:
        execute(alias, "SET LOCAL app.tenant = 'ada'")
        execute(alias, "SELECT pg_advisory_xact_lock(15)")

    with fail_next_transaction("40P01", using=alias):
        retry_transaction(
            using=alias, backoff=QUICK, sleep=lambda seconds: held.append(in_use(alias))
        )(body)()
    assert held == [0]


@pytest.fixture(autouse=True)
def nothing_stays(alias: str) -> Iterator[None]:
    """The caller's request ends."""
    yield
    connections[alias].close()

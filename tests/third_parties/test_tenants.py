"""django-tenants: queries reach the schema of their tenant, whoever had the connection before."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.third_parties.conftest import MakeSite

pytest.importorskip("django_tenants", reason="django-tenants is not installed")

SETTINGS = """
SHARED_APPS = [
    "django_tenants", "tests.third_parties.tenants", "django.contrib.contenttypes",
    "django_pooled", "django_pooled.tokens",
]
TENANT_APPS = ["tests.third_parties.notes"]
INSTALLED_APPS = [*SHARED_APPS, *TENANT_APPS]
TENANT_MODEL = "tenants.Client"
TENANT_DOMAIN_MODEL = "tenants.Domain"
MIDDLEWARE = ["django_tenants.middleware.main.TenantMainMiddleware", ...]
"""

# How often search_path is set, and what a checkout lasts for.
WAYS = [("cursor", "session"), ("connection", "session"), ("connection", "transaction")]


@pytest.fixture(scope="module", params=WAYS, ids=lambda way: "-".join(map(str, way)))
def seen(request: pytest.FixtureRequest, make_site: MakeSite) -> Any:
    """What was seen in a site of two tenants."""
    often, mode = request.param
    limit = f"TENANT_LIMIT_SET_CALLS = {often == 'connection'}"
    site = make_site("django-tenants", f"{SETTINGS}\n{limit}\n", max_size=2, pool_mode=mode)
    return site.call(look)


def test_each_tenant_sees_its_own_rows_on_a_connection_that_goes_back_and_forth(seen: Any) -> None:
    assert seen["turns"] == ["one", "two"] * 4
    assert seen["backends"] == 1


def test_requests_of_two_hosts_see_their_own_tenants_rows(seen: Any) -> None:
    assert seen["pages"] == ["one", "two", "one", "two"]


def test_a_transaction_whose_commit_had_no_answer_goes_on_in_its_tenant(seen: Any) -> None:
    assert seen["lost answer"] == {"struck": 1, "in on_commit": "one", "afterwards": "one"}


def test_a_commit_check_of_the_callers_own_looks_into_its_tenant(seen: Any) -> None:
    assert seen["own check"] == {"struck": 1, "written": 1}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork()")
def test_a_forked_child_goes_on_in_its_tenant(seen: Any) -> None:
    assert seen["child"] == "one"


def test_a_token_is_written_and_found_in_the_shared_schema(seen: Any) -> None:
    assert seen["token"] == {"struck": 1, "tokens": 1}


def test_a_decorated_coroutine_sees_the_rows_of_its_callers_tenant(seen: Any) -> None:
    assert seen["coroutines"] == ["one", "two", "one", "two", "public"]


# What follows runs in the site.


def look() -> Any:
    set_up()
    found: dict[str, Any] = {}
    found["turns"], found["backends"] = take_turns()
    found["pages"] = browse()
    found["lost answer"] = lose_an_answer()
    found["own check"] = lose_an_answer_with_a_check()
    found["token"] = lose_an_answer_with_a_token()
    found["coroutines"] = call_coroutines()
    found["child"] = fork() if hasattr(os, "fork") else None
    return found


def set_up() -> None:
    from django.core.management import call_command
    from django_tenants.utils import schema_context

    from tests.third_parties.notes.models import Note
    from tests.third_parties.tenants.models import Client, Domain

    call_command("migrate_schemas", shared=True, run_syncdb=True, verbosity=0)
    for name in ("one", "two"):
        client = Client(schema_name=name, name=name)
        client.save(verbosity=0)
        Domain.objects.create(domain=f"{name}.test", tenant=client)
        with schema_context(name):
            Note.objects.create(text=name)


def whose() -> str:
    """Return the tenant whose rows a query finds."""
    from tests.third_parties.notes.models import Note

    return Note.objects.order_by("id")[0].text


def elsewhere(work: Callable[[], object]) -> None:
    """Do something in a thread of its own, with connections of its own."""
    from django.db import connections

    def run() -> None:
        work()
        connections.close_all()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()


def visit(schema: str) -> str:
    from django.db import connection

    connection.set_schema(schema)  # type: ignore[attr-defined]
    return whose()


def take_turns() -> tuple[list[str], int]:
    from django.db import connection

    from django_pooled import registry

    connection.close()
    seen: list[str] = []
    before = registry.snapshots()[0].counters.connects
    for schema in ["one", "two"] * 4:
        elsewhere(lambda schema=schema: seen.append(visit(schema)))  # type: ignore[misc]
    return seen, 1 + registry.snapshots()[0].counters.connects - before


def browse() -> list[str]:
    from django.test import Client

    pages = [
        Client(headers={"host": f"{name}.test"}).get("/").content.decode()
        for name in ("one", "two") * 2
    ]
    return [page.removeprefix("<html><body>").removesuffix("</body></html>") for page in pages]


def lose_an_answer() -> dict[str, Any]:
    from django.db import transaction

    from django_pooled import retry_transaction
    from django_pooled.testing import fail_next_transaction
    from tests.third_parties.notes.models import Note

    visit("one")
    # Leaves the connection on which will be asked what became of the first one's COMMIT.
    elsewhere(lambda: visit("two"))
    hooks: list[str] = []

    @retry_transaction
    def write() -> None:
        Note.objects.create(text="written")
        transaction.on_commit(lambda: hooks.append(whose()))

    with fail_next_transaction(None, phase="answer") as fault:
        write()
    [hook] = hooks
    return {"struck": fault.struck, "in on_commit": hook, "afterwards": whose()}


def lose_an_answer_with_a_check() -> dict[str, Any]:
    from django_pooled import retry_transaction
    from django_pooled.testing import fail_next_transaction
    from tests.third_parties.notes.models import Note

    @retry_transaction(commit_check=lambda: Note.objects.filter(text="checked").exists())
    def write() -> None:
        Note.objects.create(text="checked")

    visit("two")
    with fail_next_transaction(None, phase="answer") as fault:
        write()
    return {"struck": fault.struck, "written": Note.objects.filter(text="checked").count()}


def lose_an_answer_with_a_token() -> dict[str, Any]:
    from django.db import connection

    from django_pooled import retry_transaction
    from django_pooled.testing import fail_next_transaction
    from tests.third_parties.notes.models import Note

    @retry_transaction(commit_check="token")
    def write() -> None:
        Note.objects.create(text="with a token")

    visit("two")
    with fail_next_transaction(None, phase="answer") as fault:
        write()
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM public.django_pooled_token")
        return {"struck": fault.struck, "tokens": cursor.fetchone()[0]}


def call_coroutines() -> list[str]:
    import asyncio

    from asgiref.sync import ThreadSensitiveContext, sync_to_async
    from django.db import connection, connections

    from django_pooled import retry_transaction

    def schema() -> str:
        return connection.schema_name  # type: ignore[attr-defined, no-any-return]

    @retry_transaction
    async def work() -> str:
        name = await sync_to_async(schema)()
        return name if name == "public" else await sync_to_async(whose)()

    async def request(name: str) -> str:
        # As a request, with a thread of its own.
        async with ThreadSensitiveContext():
            if name != "public":
                await sync_to_async(visit)(name)
            try:
                return await work()
            finally:
                await sync_to_async(connections.close_all)()

    async def main() -> list[str]:
        return [await request(name) for name in ("one", "two", "one", "two", "public")]

    return asyncio.run(main())


def fork() -> str:
    visit("one")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer = whose()
        except Exception as error:
            answer = repr(error)
        os.write(writing, answer.encode())
        os._exit(0)
    os.waitpid(child, 0)
    return os.read(reading, 1000).decode()

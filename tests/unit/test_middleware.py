"""503 for a database that can't be had: where Django shows the error, and what clients get."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from typing import TYPE_CHECKING, Any
from wsgiref.util import setup_testing_defaults

import psycopg
import pytest
from asgiref.sync import iscoroutinefunction
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.db import IntegrityError, OperationalError, ProgrammingError, connections
from django.db.backends.sqlite3.base import DatabaseWrapper as SQLiteWrapper
from django.http import Http404, HttpResponse, StreamingHttpResponse
from django.template.response import TemplateResponse
from django.test import AsyncClient, Client, RequestFactory
from django.urls import path

from django_pooled.errors import (
    AmbiguousCommit,
    CheckoutTimeout,
    ConnectFailed,
    Gauges,
    PoolClosed,
    PoolError,
    PoolExhausted,
)
from django_pooled.middleware import DatabaseUnavailableMiddleware, unavailable_response
from django_pooled.middleware import handler500 as unavailable_handler500
from django_pooled.middleware.unavailable import RETRY_AFTER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from django.http import HttpRequest
    from pytest_django import DjangoDbBlocker, Settings

MIDDLEWARE = "django_pooled.middleware.DatabaseUnavailableMiddleware"
SECRETS = ("db.internal", "s3cret", "10.1.2.3", "FATAL")


def pool_error(kind: type[PoolError] = CheckoutTimeout) -> PoolError:
    error = kind(
        "no connection to 'main' after 30.0 s: size 10 of 10, 0 idle, 10 in use, 4 waiting",
        alias="main",
        elapsed=30.0,
        gauges=Gauges(size=10, idle=0, in_use=10, waiting=4, max_size=10),
    )
    error.__cause__ = psycopg.OperationalError(
        'connection to server at "db.internal" (10.1.2.3) failed: FATAL: the password s3cret'
    )
    return error


def lost_connection() -> OperationalError:
    error = OperationalError("server closed the connection unexpectedly at db.internal")
    error.__cause__ = psycopg.OperationalError(*error.args)
    return error


def admin_shutdown() -> OperationalError:
    error = OperationalError("FATAL: terminating connection due to administrator command")
    error.__cause__ = psycopg.errors.AdminShutdown(*error.args)
    return error


def ambiguous_commit() -> AmbiguousCommit:
    error = AmbiguousCommit("lost while COMMIT was under way")
    error.__cause__ = psycopg.OperationalError("server closed the connection unexpectedly")
    return error


AWAY: dict[str, Callable[[], Exception]] = {
    "timeout": lambda: pool_error(CheckoutTimeout),
    "exhausted": lambda: pool_error(PoolExhausted),
    "refused": lambda: pool_error(ConnectFailed),
    "closed": lambda: pool_error(PoolClosed),
    "lost": lost_connection,
    "shutdown": admin_shutdown,
}
NOT_AWAY: dict[str, Callable[[], Exception]] = {
    "bug": lambda: ValueError("FATAL"),
    "constraint": lambda: IntegrityError("duplicate key"),
    "statement": lambda: ProgrammingError("no such table"),
    "ambiguous": ambiguous_commit,
}


def fail(request: HttpRequest, error: str) -> HttpResponse:
    raise {**AWAY, **NOT_AWAY}[error]()


async def fail_async(request: HttpRequest, error: str) -> HttpResponse:
    raise {**AWAY, **NOT_AWAY}[error]()


def query(request: HttpRequest, alias: str) -> HttpResponse:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT 1")
    return HttpResponse("queried")


def fine(request: HttpRequest) -> HttpResponse:
    return HttpResponse("fine")


def look_up(request: HttpRequest) -> HttpResponse:
    try:
        raise ambiguous_commit()
    except AmbiguousCommit:
        raise pool_error()  # noqa: B904


class _Rows:
    """Stands for a lazy queryset that the template is the first to evaluate."""

    def __iter__(self) -> Iterator[None]:
        raise pool_error()


def lazy(request: HttpRequest) -> TemplateResponse:
    return TemplateResponse(request, "rows.html", {"rows": _Rows()})


def stream(request: HttpRequest) -> StreamingHttpResponse:
    def rows() -> Iterator[str]:
        yield "first"
        raise pool_error()

    return StreamingHttpResponse(rows())


def missing(request: HttpRequest) -> HttpResponse:
    raise Http404


def handler404(request: HttpRequest, exception: Exception) -> HttpResponse:
    raise pool_error()


handler500 = "django_pooled.middleware.handler500"
urlpatterns = [
    path("fail/<error>/", fail),
    path("fail-async/<error>/", fail_async),
    path("query/<alias>/", query),
    path("fine/", fine),
    path("look-up/", look_up),
    path("lazy/", lazy),
    path("stream/", stream),
    path("missing/", missing),
]


def fails_before(get_response: Callable[[HttpRequest], HttpResponse]) -> Any:
    def middleware(request: HttpRequest) -> HttpResponse:
        raise pool_error()

    return middleware


def fails_after(get_response: Callable[[HttpRequest], HttpResponse]) -> Any:
    def middleware(request: HttpRequest) -> HttpResponse:
        get_response(request)
        raise pool_error()

    return middleware


class Records(logging.Handler):
    """Keeps what a logger was given, whatever the logging settings make of it."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.of: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.of.append(record)

    def __call__(self, name: str) -> list[logging.LogRecord]:
        return [record for record in self.of if record.name == name]


@pytest.fixture
def records() -> Iterator[Records]:
    handler = Records()
    loggers = [logging.getLogger(name) for name in ("django_pooled.pool", "django.request")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
    yield handler
    for logger, level in zip(loggers, levels, strict=True):
        logger.removeHandler(handler)
        logger.setLevel(level)


def template_settings(**templates: str) -> list[dict[str, Any]]:
    loader = ("django.template.loaders.locmem.Loader", templates)
    processors = [f"{__name__}.querying_context_processor"]
    return [
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "OPTIONS": {"loaders": [loader], "context_processors": processors},
        }
    ]


def querying_context_processor(request: HttpRequest) -> dict[str, Any]:
    raise pool_error()


@pytest.fixture(autouse=True)
def site(bare_site: Settings) -> Settings:
    bare_site.ROOT_URLCONF = __name__
    bare_site.MIDDLEWARE = [MIDDLEWARE]
    return bare_site


class Browser:
    """Asks the site under WSGI or under ASGI."""

    def __init__(self, interface: str) -> None:
        self.interface = interface

    def get(self, url: str, *, accept: str | None = None, method: str = "GET") -> HttpResponse:
        headers = {} if accept is None else {"Accept": accept}
        if self.interface == "wsgi":
            client = Client(raise_request_exception=False)
            response: Any = client.generic(method, url, headers=headers)
        else:
            async_client: Any = AsyncClient(raise_request_exception=False)
            response = asyncio.run(async_client.generic(method, url, headers=headers))
        assert isinstance(response, HttpResponse)
        return response


@pytest.fixture(params=["wsgi", "asgi"])
def browser(request: pytest.FixtureRequest) -> Browser:
    return Browser(request.param)


@pytest.fixture
def closed_port() -> Iterator[int]:
    # Bound without listening: refused for as long as the test holds it.
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


@pytest.fixture
def database(django_db_blocker: DjangoDbBlocker) -> Iterator[Callable[..., str]]:
    added: list[str] = []

    def add(alias: str, **entry: Any) -> str:
        filled = connections.configure_settings({"default": {}, alias: entry})
        connections.settings[alias] = filled[alias]
        added.append(alias)
        return alias

    with django_db_blocker.unblock():
        yield add
        for alias in added:
            connection: Any = connections[alias]
            del connections[alias]
            del connections.settings[alias]
            connection.close()
            if connection.vendor == "postgresql":
                connection.close_pool()


def assert_unavailable(response: HttpResponse) -> None:
    assert response.status_code == 503
    assert response.reason_phrase == "Service Unavailable"
    assert RETRY_AFTER[0] <= int(response["Retry-After"]) <= RETRY_AFTER[1]
    assert response["Cache-Control"] == "no-store"
    for secret in SECRETS:
        assert secret not in response.content.decode()


@pytest.mark.parametrize("view", ["fail", "fail-async"])
@pytest.mark.parametrize("error", AWAY)
def test_a_view_without_its_database_is_answered_503(
    browser: Browser, view: str, error: str
) -> None:
    assert_unavailable(browser.get(f"/{view}/{error}/"))


@pytest.mark.parametrize("view", ["fail", "fail-async"])
@pytest.mark.parametrize("error", AWAY)
def test_the_error_handler_alone_answers_503_too(
    browser: Browser, site: Settings, view: str, error: str
) -> None:
    site.MIDDLEWARE = []
    assert_unavailable(browser.get(f"/{view}/{error}/"))


@pytest.mark.parametrize("middleware", [[], [MIDDLEWARE]])
@pytest.mark.parametrize("error", NOT_AWAY)
def test_any_other_error_stays_a_500(
    browser: Browser,
    site: Settings,
    records: Records,
    middleware: list[str],
    error: str,
) -> None:
    site.MIDDLEWARE = middleware
    response = browser.get(f"/fail/{error}/")
    assert response.status_code == 500
    assert "Retry-After" not in response
    assert [r.levelname for r in records("django.request")] == ["ERROR"]
    assert records("django_pooled.pool") == []


@pytest.mark.parametrize("engine", ["django.db.backends.postgresql", "django_pooled"])
@pytest.mark.parametrize("atomic_requests", [False, True])
def test_a_refused_connection_is_answered_503(
    browser: Browser,
    database: Callable[..., str],
    closed_port: int,
    records: Records,
    engine: str,
    atomic_requests: bool,
) -> None:
    database(
        "refused",
        ENGINE=engine,
        HOST="127.0.0.1",
        PORT=closed_port,
        NAME="shop",
        USER="clerk",
        PASSWORD="s3cret",
        ATOMIC_REQUESTS=atomic_requests,
        OPTIONS={"pool": {"timeout": 0.2, "stats_dir": False}} if engine == "django_pooled" else {},
    )
    # Under ATOMIC_REQUESTS it is BEGIN, outside of the view, that finds the server gone.
    response = browser.get("/fine/" if atomic_requests else "/query/refused/")
    assert_unavailable(response)
    [record] = [r for r in records("django_pooled.pool") if hasattr(r, "status_code")]
    assert "Database 'refused' is unavailable" in record.getMessage()
    assert "Connection refused" in record.getMessage()
    assert "s3cret" not in record.getMessage()
    assert "127.0.0.1" not in response.content.decode()


class LosesCommit(SQLiteWrapper):
    """A connection that is lost while COMMIT is under way."""

    def _commit(self) -> None:
        raise ambiguous_commit()


def test_a_commit_of_atomic_requests_that_is_ambiguous_stays_a_500(
    database: Callable[..., str], records: Records, tmp_path: Path
) -> None:
    alias = database(
        "ledger",
        ENGINE="django.db.backends.sqlite3",
        NAME=tmp_path / "ledger",
        ATOMIC_REQUESTS=True,
    )
    connections[alias] = LosesCommit(connections.settings[alias], alias)
    response = Browser("wsgi").get(f"/query/{alias}/")
    assert response.status_code == 500
    assert "Retry-After" not in response
    [record] = records("django.request")
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], AmbiguousCommit)


def test_looking_for_an_ambiguous_commit_in_vain_stays_a_500(browser: Browser) -> None:
    response = browser.get("/look-up/")
    assert response.status_code == 500
    assert "Retry-After" not in response


@pytest.mark.parametrize("name", ["fails_before", "fails_after"])
def test_an_error_in_another_middleware_is_left_to_the_error_handler(
    browser: Browser, site: Settings, name: str
) -> None:
    site.MIDDLEWARE = [MIDDLEWARE, f"{__name__}.{name}"]
    assert_unavailable(browser.get("/fine/"))
    site.MIDDLEWARE = [f"{__name__}.{name}", MIDDLEWARE]
    assert_unavailable(browser.get("/fine/"))


def test_an_error_in_handler404_is_left_to_the_error_handler(browser: Browser) -> None:
    assert_unavailable(browser.get("/missing/"))


def test_a_template_that_queries_while_it_is_rendered_is_answered_503(
    browser: Browser, site: Settings
) -> None:
    site.TEMPLATES = template_settings(**{"rows.html": "{% for row in rows %}{% endfor %}"})
    site.TEMPLATES[0]["OPTIONS"]["context_processors"] = []
    assert_unavailable(browser.get("/lazy/"))


def test_a_streaming_response_has_sent_its_status_and_ends_in_the_error() -> None:
    response = Client(raise_request_exception=False).get("/stream/")
    assert response.status_code == 200
    content = iter(response)
    assert next(content) == b"first"
    with pytest.raises(CheckoutTimeout):
        next(content)


def test_retry_after_is_jittered() -> None:
    request = RequestFactory().get("/")
    seen = set()
    for _ in range(400):
        response = unavailable_response(request, pool_error())
        assert response is not None
        seen.add(int(response["Retry-After"]))
    assert seen == set(range(RETRY_AFTER[0], RETRY_AFTER[1] + 1))


def test_retry_after_can_be_set_in_a_subclass() -> None:
    class Patient(DatabaseUnavailableMiddleware):
        retry_after = (60, 60)

    response = Patient(fine).process_exception(RequestFactory().get("/"), pool_error())
    assert response is not None
    assert response["Retry-After"] == "60"


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (None, "html"),
        ("", "html"),
        ("*/*", "html"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "html"),
        ("application/json;q=0.5, text/html", "html"),
        ("image/avif,image/webp,*/*", "html"),
        ("application/vnd.example+xml", "html"),
        (";;q=zzz, a/b/c", "html"),
        ("application/json", "json"),
        ("application/json; version=2", "json"),
        ("application/vnd.api+json", "json"),
        ("text/plain, Application/JSON;q=0.9, */*;q=0.1", "json"),
        ("application/json, text/plain, */*", "json"),
        ("text/html;q=0.5, application/json", "json"),
        ("application/*", "json"),
    ],
)
@pytest.mark.parametrize("middleware", [[], [MIDDLEWARE]])
def test_the_body_is_what_the_client_prefers(
    browser: Browser,
    site: Settings,
    middleware: list[str],
    accept: str | None,
    kind: str,
) -> None:
    site.MIDDLEWARE = middleware
    response = browser.get("/fail/timeout/", accept=accept)
    assert_unavailable(response)
    retry_after = int(response["Retry-After"])
    if kind == "json":
        assert response["Content-Type"] == "application/json"
        answer = json.loads(response.content)
        assert set(answer) == {"error", "detail", "retry_after"}
        assert answer["error"] == "database_unavailable"
        assert answer["retry_after"] == retry_after
        assert f"{retry_after} seconds" in answer["detail"]
    else:
        assert response["Content-Type"] == "text/html; charset=utf-8"
        assert "<h1>Service unavailable</h1>" in response.content.decode()
        assert f"{retry_after} seconds" in response.content.decode()


def test_the_projects_own_page_is_rendered_without_context_processors(
    browser: Browser, site: Settings
) -> None:
    site.TEMPLATES = template_settings(
        **{"503.html": "<p>Our own page, {{ retry_after }}, {{ detail }}</p>"}
    )
    response = browser.get("/fail/timeout/")
    assert_unavailable(response)
    seconds = response["Retry-After"]
    assert response.content.decode().startswith(f"<p>Our own page, {seconds}, The database")


@pytest.mark.parametrize(
    "template", ["{% nonsense %}", "{% extends 'lost.html' %}", "{% url 'nowhere' %}"]
)
def test_a_broken_page_of_the_project_gives_way_to_the_small_one(
    browser: Browser, site: Settings, records: Records, template: str
) -> None:
    site.TEMPLATES = template_settings(**{"503.html": template})
    response = browser.get("/fail/timeout/")
    assert_unavailable(response)
    assert "<h1>Service unavailable</h1>" in response.content.decode()
    levels = [record.levelname for record in records("django_pooled.pool")]
    assert sorted(levels) == ["ERROR", "WARNING"]


@pytest.mark.parametrize("middleware", [[], [MIDDLEWARE]])
@pytest.mark.parametrize("url", ["/fail/timeout/", "/fail-async/timeout/"])
def test_one_warning_is_logged_and_the_admins_get_no_mail(
    browser: Browser,
    site: Settings,
    records: Records,
    middleware: list[str],
    url: str,
) -> None:
    site.MIDDLEWARE = middleware
    browser.get(url)
    [record] = records("django_pooled.pool")
    assert record.levelname == "WARNING"
    assert record.exc_info is None
    assert record.getMessage() == (
        f"Database 'main' is unavailable, GET {url} was answered 503: CheckoutTimeout: no "
        f"connection to 'main' after 30.0 s: size 10 of 10, 0 idle, 10 in use, 4 waiting"
    )
    # AdminEmailHandler listens to errors, and Django logs a 5xx response as one.
    assert records("django.request") == []


@pytest.mark.parametrize(
    "words",
    [
        'missing "=" after "postgres://clerk:p@s3cret@db/shop" in connection info string',
        'invalid connection option in "host=db password=s3cret"',
        "invalid connection option in \"password='s3cret and more' host=db\"",
    ],
)
def test_the_log_line_carries_no_credentials(records: Records, words: str) -> None:
    error = OperationalError(words)
    error.__cause__ = psycopg.OperationalError(words)
    assert unavailable_response(RequestFactory().get("/"), error) is not None
    [record] = records("django_pooled.pool")
    assert "***" in record.getMessage()
    assert "s3cret" not in record.getMessage()


def test_the_log_line_names_the_sqlstate(records: Records) -> None:
    unavailable_response(RequestFactory().get("/"), admin_shutdown())
    [record] = records("django_pooled.pool")
    assert "OperationalError 57P01: FATAL: terminating" in record.getMessage()


def test_debug_answers_503_and_logs_the_traceback(
    browser: Browser, site: Settings, records: Records
) -> None:
    site.DEBUG = True
    assert_unavailable(browser.get("/fail/timeout/"))
    [record] = records("django_pooled.pool")
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], CheckoutTimeout)


def test_head_gets_the_headers_alone(browser: Browser) -> None:
    response = browser.get("/fail/timeout/", method="HEAD")
    assert_unavailable(response)
    assert response.content == b""


@pytest.mark.parametrize("interface", ["wsgi", "asgi"])
def test_the_middleware_is_adapted_by_no_thread(
    site: Settings, records: Records, interface: str
) -> None:
    site.DEBUG = True
    site.MIDDLEWARE = [MIDDLEWARE, MIDDLEWARE]
    handler: Any = WSGIHandler() if interface == "wsgi" else ASGIHandler()
    assert iscoroutinefunction(handler._middleware_chain) == (interface == "asgi")
    assert [r.getMessage() for r in records("django.request") if "adapted" in r.getMessage()] == []


@pytest.mark.parametrize("middleware", [[], [MIDDLEWARE]])
def test_503_comes_out_of_the_wsgi_handler(site: Settings, middleware: list[str]) -> None:
    site.MIDDLEWARE = middleware
    environ: dict[str, Any] = {"PATH_INFO": "/fail/lost/"}
    setup_testing_defaults(environ)
    started: list[tuple[str, list[tuple[str, str]]]] = []

    def start(status: str, headers: list[tuple[str, str]], error: object = None, /) -> Any:
        started.append((status, headers))

    response = WSGIHandler()(environ, start)
    body = b"".join(response)
    response.close()
    [(status, headers)] = started
    assert status == "503 Service Unavailable"
    assert "Retry-After" in dict(headers)
    assert b"db.internal" not in body


@pytest.mark.parametrize("view", ["fail", "fail-async"])
@pytest.mark.parametrize("middleware", [[], [MIDDLEWARE]])
def test_503_comes_out_of_the_asgi_handler(
    site: Settings, middleware: list[str], view: str
) -> None:
    site.MIDDLEWARE = middleware

    scope = {
        "type": "http",
        "method": "GET",
        "path": f"/{view}/lost/",
        "query_string": b"",
        "headers": [],
    }
    sent: list[Mapping[str, Any]] = []

    async def ask() -> None:
        requests: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        await requests.put({"type": "http.request"})

        async def send(message: Mapping[str, Any]) -> None:
            sent.append(message)

        await ASGIHandler()(scope, requests.get, send)

    asyncio.run(asyncio.wait_for(ask(), timeout=10))
    start, body = sent
    assert start["status"] == 503
    assert b"Retry-After" in dict(start["headers"])
    assert b"db.internal" not in body["body"]


def test_the_error_handler_without_an_error_is_djangos() -> None:
    assert unavailable_handler500(RequestFactory().get("/")).status_code == 500

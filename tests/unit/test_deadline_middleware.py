"""The deadline of a request: from the setting, and from the header of a proxy."""

from __future__ import annotations

import asyncio
import json
import logging
from time import sleep
from typing import TYPE_CHECKING, Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpResponse
from django.test import AsyncClient, Client
from django.urls import path

from django_pooled import DeadlineExceeded, deadline
from django_pooled.errors import AmbiguousCommit
from django_pooled.middleware import DeadlineMiddleware
from django_pooled.pool.deadline import current, ends_at
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from django.http import HttpRequest
    from pytest_django import Settings

MIDDLEWARE = "django_pooled.middleware.DeadlineMiddleware"


def left(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(deadline.left()))


async def left_async(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(deadline.left()))


def late(request: HttpRequest) -> HttpResponse:
    raise DeadlineExceeded("the deadline of 5 s ended")


def ambiguous(request: HttpRequest) -> HttpResponse:
    raise AmbiguousCommit("unknown") from DeadlineExceeded("the deadline of 5 s ended")


def broken(request: HttpRequest) -> HttpResponse:
    raise ValueError


urlpatterns = [
    path("left/", left),
    path("left-async/", left_async),
    path("late/", late),
    path("ambiguous/", ambiguous),
    path("broken/", broken),
]


@pytest.fixture(autouse=True)
def site(bare_site: Settings) -> Settings:
    bare_site.ROOT_URLCONF = __name__
    bare_site.MIDDLEWARE = [MIDDLEWARE]
    bare_site.POOLED_DEADLINE = {"seconds": 60.0}
    return bare_site


class Browser:
    """Asks the site under WSGI or under ASGI."""

    def __init__(self, interface: str) -> None:
        self.interface = interface

    def get(self, url: str, **headers: str) -> Any:
        if self.interface == "wsgi":
            return Client(raise_request_exception=False).get(url, headers=headers)
        client: Any = AsyncClient(raise_request_exception=False)
        return asyncio.run(client.get(url, headers=headers))


@pytest.fixture(params=["wsgi", "asgi"])
def browser(request: pytest.FixtureRequest) -> Browser:
    return Browser(request.param)


def asked(browser: Browser, url: str = "/left/", **headers: str) -> float:
    response = browser.get(url, **headers)
    assert response.status_code == 200
    return float(response.content)


@pytest.mark.parametrize("url", ["/left/", "/left-async/"])
@pytest.mark.parametrize("cancels", [False, True])
def test_a_view_has_the_deadline_of_the_setting(
    browser: Browser, site: Settings, url: str, cancels: bool
) -> None:
    site.POOLED_DEADLINE = {"seconds": 60.0, "cancel_on_disconnect": cancels}
    assert 30 < asked(browser, url) <= 60
    assert current.get() is None


def test_the_setting_may_be_a_number(browser: Browser, site: Settings) -> None:
    site.POOLED_DEADLINE = 20
    assert 10 < asked(browser) <= 20


def test_a_deadline_around_the_request_counts_if_it_is_earlier(browser: Browser) -> None:
    with deadline(10.0):
        assert 1 < asked(browser) <= 10


@pytest.mark.parametrize(
    ("header", "value", "seconds"),
    [
        ("X-Request-Timeout", "20", 20.0),
        ("X-Request-Timeout", " 20.5 ", 20.5),
        ("X-Envoy-Expected-Rq-Timeout-Ms", "20500", 20.5),
        ("grpc-timeout", "20500m", 20.5),
        ("grpc-timeout", "20S", 20.0),
    ],
)
def test_a_proxys_header_shortens_it(
    browser: Browser, site: Settings, header: str, value: str, seconds: float
) -> None:
    site.POOLED_DEADLINE = {"seconds": 60, "header": header}
    assert seconds - 10 < asked(browser, **{header: value}) <= seconds


@pytest.mark.parametrize(
    ("header", "value"),
    [("X-Request-Timeout", "3600"), ("X-Request-Timeout-Ms", "999999"), ("grpc-timeout", "1H")],
)
def test_a_header_never_lengthens_it(
    browser: Browser, site: Settings, header: str, value: str
) -> None:
    site.POOLED_DEADLINE = {"seconds": 60, "header": header}
    assert 30 < asked(browser, **{header: value}) <= 60


def test_a_header_alone_is_enough(browser: Browser, site: Settings) -> None:
    site.POOLED_DEADLINE = {"header": "X-Request-Timeout"}
    assert asked(browser) == float("inf")
    assert 10 < asked(browser, **{"X-Request-Timeout": "20"}) <= 20


def test_a_header_that_is_not_named_is_ignored(browser: Browser) -> None:
    assert 30 < asked(browser, **{"X-Request-Timeout": "1"}) <= 60


@pytest.mark.parametrize(
    "value", ["soon", "-1", "inf", "nan", "1e3", "5, 10", "5s", "", "0x10", "5\u00a0"]
)
def test_a_header_without_a_time_is_ignored_and_logged(
    browser: Browser, site: Settings, caplog: pytest.LogCaptureFixture, value: str
) -> None:
    site.POOLED_DEADLINE = {"seconds": 60, "header": "X-Request-Timeout"}
    with caplog.at_level(logging.WARNING, logger="django_pooled.pool"):
        assert 30 < asked(browser, **{"X-Request-Timeout": value}) <= 60
    [record] = [each for each in caplog.records if each.name == "django_pooled.pool"]
    assert "X-Request-Timeout is ignored" in record.getMessage()
    assert record.__dict__["event"] == "deadline_header_ignored"


@pytest.mark.parametrize("value", ["0", "0.04"])
def test_a_request_with_too_little_left_is_refused_before_its_view_is_called(
    browser: Browser, site: Settings, value: str
) -> None:
    site.POOLED_DEADLINE = {"seconds": 60, "header": "X-Request-Timeout"}
    response = browser.get("/broken/", **{"X-Request-Timeout": value})
    assert (response.status_code, response["Cache-Control"]) == (503, "no-store")


def test_a_view_whose_deadline_ended_is_answered_503_with_the_reason(browser: Browser) -> None:
    response = browser.get("/late/", Accept="application/json")
    assert response.status_code == 503
    answer = json.loads(response.content)
    assert answer["error"] == "deadline_exceeded"
    assert answer["retry_after"] == int(response["Retry-After"])
    assert "too long" in browser.get("/late/").content.decode()


@pytest.mark.parametrize("url", ["/ambiguous/", "/broken/"])
def test_any_other_error_stays_a_500(browser: Browser, url: str) -> None:
    assert browser.get(url).status_code == 500


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, "expected seconds, or a dict"),
        ("10", "expected seconds, or a dict"),
        ({}, "neither 'seconds' nor 'header'"),
        ({"second": 10}, "did you mean 'seconds'"),
        ({"seconds": 0}, "expected seconds above 0"),
        ({"seconds": float("nan")}, "expected seconds above 0"),
        ({"seconds": 10**400}, "expected seconds above 0"),
        ({"seconds": 5, "minimum": False}, "expected seconds above 0"),
        ({"seconds": True}, "expected seconds above 0"),
        ({"seconds": "10"}, "expected seconds above 0"),
        ({"seconds": 0.01}, "below which requests are refused"),
        ({"seconds": 10, "minimum": -1}, "expected seconds above 0"),
        ({"seconds": 10, "header": "X Y"}, "expected a header's name"),
        ({"seconds": 10, "cancel_on_disconnect": 1}, "expected True or False"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_at_start_up(
    site: Settings, given: object, words: str
) -> None:
    site.POOLED_DEADLINE = given
    with pytest.raises(ImproperlyConfigured, match=words):
        DeadlineMiddleware(left)


def test_a_request_that_is_cancelled_ends_its_deadline_while_its_thread_goes_on(
    site: Settings,
) -> None:
    site.POOLED_DEADLINE = {"cancel_on_disconnect": True}
    seen: list[object] = []

    async def main() -> None:
        from asgiref.sync import sync_to_async

        began = asyncio.Event()
        loop = asyncio.get_running_loop()

        def work() -> None:
            present = current.get()
            assert present is not None
            loop.call_soon_threadsafe(began.set)
            while not present.has_ended:
                sleep(0.001)
            seen.append(present.reason)

        async def view(request: HttpRequest) -> HttpResponse:
            await sync_to_async(work)()
            return HttpResponse()

        middleware: Any = DeadlineMiddleware(view)
        request: Any = type("Request", (), {"META": {}, "headers": {}})()
        task = asyncio.ensure_future(middleware(request))
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    # The thread may outlast the request.
    wait_until(lambda: bool(seen))
    assert seen == ["the client has gone"]
    assert ends_at() == float("inf")


def test_the_log_names_the_database_of_a_site_that_has_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    Client(raise_request_exception=False).get("/late/")
    [record] = [each for each in caplog.records if getattr(each, "event", "") == "answered_503"]
    assert "Database 'default' had no time left, GET /late/" in record.getMessage()

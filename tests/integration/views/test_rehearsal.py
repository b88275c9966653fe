"""A rehearsal calls views once and tells what another attempt would repeat."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from django.core.cache import cache
from django.core.mail import send_mail, send_mass_mail
from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse
from django.template import engines
from django.template.response import TemplateResponse
from django.test import Client
from django.urls import path

from django_pooled.urls import retry_requests
from django_pooled.views.side_effects import recording
from tests.app.models import Note

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls("tests.integration.views.test_rehearsal"),
]


def mails(request: HttpRequest) -> HttpResponse:
    send_mail("subject", "text", None, ["a@example.org"])
    return HttpResponse()


def mails_many(request: HttpRequest) -> HttpResponse:
    send_mass_mail([("subject", "text", None, ["a@example.org"])])
    return HttpResponse()


def asks(request: HttpRequest) -> HttpResponse:
    with urllib.request.urlopen(request.GET["url"]) as answer:
        return HttpResponse(answer.read())


def caches(request: HttpRequest) -> HttpResponse:
    cache.get_or_set("stock", 3)
    return HttpResponse()


def writes_file(request: HttpRequest) -> HttpResponse:
    Path(request.GET["path"]).write_text("text")
    Path(request.GET["path"]).read_text()
    return HttpResponse()


def runs_program(request: HttpRequest) -> HttpResponse:
    subprocess.run([sys.executable, "-c", ""], check=True)
    return HttpResponse()


def waits_for_commit(request: HttpRequest) -> HttpResponse:
    transaction.on_commit(lambda: send_mail("subject", "text", None, ["a@example.org"]))
    return HttpResponse()


def writes(request: HttpRequest) -> HttpResponse:
    Note.objects.create(text="once")
    return HttpResponse()


def late(request: HttpRequest) -> TemplateResponse:
    template = engines["django"].from_string("{{ call }}")
    return TemplateResponse(request, template, {"call": lambda: cache.set("page", 1)})


def locks(request: HttpRequest) -> HttpResponse:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(1), pg_advisory_unlock(1)")
    return HttpResponse()


VIEWS = [
    *(mails, mails_many, asks, caches, writes_file, runs_program),
    *(waits_for_commit, writes, late, locks),
]
urlpatterns = retry_requests(
    [path(f"{view.__name__}/", view) for view in VIEWS], methods="all", rehearse=True
)


@pytest.fixture
def told(
    settings: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """What the log says in the end; the site's views have told nothing before."""
    settings.TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates"}]
    return _Told(caplog)


class _Told(list[str]):
    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        super().__init__()
        self._caplog = caplog

    def __iter__(self) -> Iterator[str]:
        for record in self._caplog.records:
            if getattr(record, "event", None) == "would_repeat":
                yield record.getMessage().partition(" does in each attempt: ")[2]


@pytest.mark.parametrize(
    ("view", "effects"),
    [
        ("mails", ["sends mail"]),
        ("mails_many", ["sends mail"]),
        ("caches", ["changes the cache 'default': add of 'stock'"]),
        ("late", ["changes the cache 'default': set of 'page'"]),
        ("runs_program", [f"runs the program {sys.executable}"]),
        ("waits_for_commit", []),
        ("writes", ["may write to the database, in a request that should only read"]),
        (
            "locks",
            [
                "may write to the database, in a request that should only read",
                "uses a session advisory lock",
            ],
        ),
    ],
)
def test_each_effect_is_told_once(told: list[str], view: str, effects: list[str]) -> None:
    cache.clear()
    for _ in range(2):
        assert Client().get(f"/{view}/").status_code == 200
    assert [effect for each in told for effect in each.split("; ")][: len(effects)] == effects
    assert len(list(told)) == min(1, len(effects))


def test_a_request_to_another_service_is_told(told: list[str]) -> None:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as service:
        thread = threading.Thread(target=service.handle_request)
        thread.start()
        port = service.server_address[1]
        Client().get("/asks/", {"url": f"http://127.0.0.1:{port}/"})
        thread.join()
    [sentence] = told
    assert f"connects to 127.0.0.1:{port}" in sentence
    assert "sends an HTTP request to 127.0.0.1" in sentence


def test_a_file_that_is_written_is_told(
    told: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Files for the moment do not count, and this one is in their folder.
    monkeypatch.setattr("tempfile.tempdir", "/somewhere/else")
    Client().get("/writes_file/", {"path": str(tmp_path / "report.txt")})
    assert list(told) == [f"writes to the file {tmp_path / 'report.txt'}"]


def test_a_view_is_called_once_and_committed(told: list[str]) -> None:
    Client().post("/writes/")
    assert Note.objects.count() == 1
    # A POST is meant to write.
    assert list(told) == []


def test_the_folder_for_temporary_files_may_be_unknown_so_far(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Python finds it out by opening files in it.
    monkeypatch.setattr(tempfile, "tempdir", None)
    found: list[str] = []

    def record() -> None:
        with recording() as effects:
            tempfile.TemporaryFile().close()
            monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
            (tmp_path / "temporary-not.txt").touch()
        found.extend(effects)

    recorder = threading.Thread(target=record, daemon=True)
    recorder.start()
    recorder.join(30.0)
    assert not recorder.is_alive()
    assert found == [f"writes to the file {tmp_path / 'temporary-not.txt'}"]

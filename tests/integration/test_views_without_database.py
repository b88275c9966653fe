"""The package's views over HTTP, in a site with ATOMIC_REQUESTS whose second database is away."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import psycopg
import pytest

from embedded_postgres import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from embedded_postgres import EmbeddedServer

ROOT = Path(__file__).resolve().parents[2]

SITE = """
import json, sys
from wsgiref.simple_server import make_server

# Before any settings: as where the settings module imports its own URLs or views.
from django_pooled.health import liveness, readiness
from django_pooled.metrics import prometheus

from django.conf import settings

settings.configure(
    SECRET_KEY="only for tests",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    DATABASES=json.loads(sys.argv[1]),
    INSTALLED_APPS=[
        "django.contrib.admin", "django.contrib.auth", "django.contrib.contenttypes",
        "django.contrib.messages", "django.contrib.sessions", "django.contrib.staticfiles",
        "django_pooled", "django_pooled.dashboard",
    ],
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
    ],
    TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}],
    STATIC_URL="static/",
)

import django

django.setup()

from django.contrib.auth.models import User
from django.core.management import call_command
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.test import Client
from django.urls import include, path

urlpatterns = [
    path("metrics", prometheus),
    path("live", liveness),
    path("ready", readiness, {"using": "default"}),
    path("pools/", include("django_pooled.dashboard.urls")),
    path("ordinary", lambda request: HttpResponse("fine")),
]
call_command("migrate", verbosity=0)
client = Client()
client.force_login(User.objects.create_user("ann", is_staff=True))
with make_server("127.0.0.1", 0, get_wsgi_application()) as served:
    answer = {"port": served.server_port, "session": client.cookies["sessionid"].value}
    print(json.dumps(answer), flush=True)
    served.serve_forever()
"""


class Site(NamedTuple):
    """A site that is being served."""

    port: int
    session: str
    """Of a member of staff."""

    def status(self, path: str) -> int:
        """Return the status of a page as a member of staff gets it."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/{path}", headers={"Cookie": f"sessionid={self.session}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60.0) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code


@pytest.fixture(scope="module")
def site(server: EmbeddedServer) -> Iterator[Site]:
    pooled = {"ENGINE": "django_pooled", "ATOMIC_REQUESTS": True}
    databases = {
        "default": server.django_settings() | pooled | {"NAME": "views_without_database"},
        "reports": server.django_settings()
        | pooled
        | {"PORT": free_port(), "OPTIONS": {"pool": {"timeout": 0.2}}},
    }
    with psycopg.connect(**server.parameters(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE views_without_database")
    with subprocess.Popen(
        [sys.executable, "-c", SITE, json.dumps(databases)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield Site(**json.loads(process.stdout.readline()))
        finally:
            process.kill()


def test_a_view_of_the_project_fails_in_this_site(site: Site) -> None:
    assert site.status("ordinary") == 500


@pytest.mark.parametrize("path", ["metrics", "live", "ready", "pools/", "pools/pass/"])
def test_a_view_of_the_package_answers_while_another_database_is_away(
    site: Site, path: str
) -> None:
    assert site.status(path) == 200


def test_the_pages_figures_are_refused_for_want_of_a_pass_and_not_of_a_database(
    site: Site,
) -> None:
    assert site.status("pools/snapshot/") == 403

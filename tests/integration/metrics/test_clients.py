"""The pools beside prometheus_client and django-prometheus, with one process and with several."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from django.db import connections

from django_pooled.metrics import PoolCollector

if TYPE_CHECKING:
    from embedded_postgres import EmbeddedServer
    from tests.support.pools import MakeDatabase

pytest.importorskip("django_prometheus", reason="django-prometheus is not installed")

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics_exposition

ROOT = Path(__file__).resolve().parents[3]


def test_a_collector_shows_the_pools_of_this_process(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    collectors = CollectorRegistry()
    collectors.register(PoolCollector())
    alias = make_database(server, stats_dir=False)

    def value(name: str, **labels: str) -> float | None:
        labels = {"database": alias, **labels}
        return collectors.get_sample_value(f"django_pooled_{name}", labels)

    assert value("checkouts_total") is None
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT 1")
    assert value("pool_in_use") == 1
    connections[alias].close()
    assert (value("pool_in_use"), value("pool_idle")) == (0, 1)
    assert value("checkouts_total") == 1
    assert value("connections_closed_total", reason="dead") == 0
    assert value("use_seconds_count") == 1
    assert value("use_seconds_bucket", le="+Inf") == 1
    assert b"# TYPE django_pooled_use_seconds histogram" in generate_latest(collectors)
    assert b"# EOF" in openmetrics_exposition.generate_latest(collectors)  # type: ignore[no-untyped-call]


def test_a_collector_tells_its_names_when_it_is_registered() -> None:
    collectors = CollectorRegistry(auto_describe=False)
    collectors.register(PoolCollector())
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        collectors.register(PoolCollector(whole_site=True))


# Run by several processes of one site, with prometheus_client's own files for them or without.
SITE = """
import json, os, sys
from django.conf import settings
import dj_database_url

url, folder = sys.argv[1:]
settings.configure(
    DATABASES={"default": {
        **dj_database_url.parse(url, engine="django_pooled"),
        "OPTIONS": {"pool": {"max_size": 2, "stats_dir": folder}},
    }},
    ALLOWED_HOSTS=["*"],
    INSTALLED_APPS=["django_pooled", "django_prometheus"],
    MIDDLEWARE=[f"django_prometheus.middleware.Prometheus{at}Middleware"
                for at in ("Before", "After")],
    ROOT_URLCONF="__main__",
    SECRET_KEY="only for tests",
)
import django
django.setup()
from django.db import connection
from django.http import HttpResponse
from django.test import Client
from django.urls import include, path
from django_pooled.metrics import PoolCollector, collector, page, prometheus
from prometheus_client import CollectorRegistry, Counter, REGISTRY, generate_latest, multiprocess
from prometheus_client.parser import text_string_to_metric_families

page.TIMEOUT = collector.TIMEOUT = 20.0
multiple = "PROMETHEUS_MULTIPROC_DIR" in os.environ
asked = Counter("asked", "Requests.")

def ask(request):
    asked.inc()
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    connection.close()
    return HttpResponse()

def own_page(request):
    if not multiple:
        return HttpResponse(generate_latest(REGISTRY))
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)
    registry.register(PoolCollector(whole_site=True))
    return HttpResponse(generate_latest(registry))

urlpatterns = [
    path("ask", ask), path("own", own_page), path("pools", prometheus),
    path("", include("django_prometheus.urls")),
]
if not multiple:
    REGISTRY.register(PoolCollector())

def values(page):
    families = text_string_to_metric_families(Client().get(page).content.decode())
    return {sample.name: sample.value for family in families for sample in family.samples
            if sample.name in ("asked_total", "django_pooled_checkouts_total",
                               "django_http_requests_before_middlewares_total")}

Client().get("/ask")
print("ready", flush=True)
sys.stdin.readline()
print(json.dumps({page: values(page) for page in ("/own", "/pools", "/metrics")}), flush=True)
sys.stdin.readline()
"""


def answers(server: EmbeddedServer, folder: Path, stats_dir: Path, *, multiple: bool) -> list[Any]:
    """Run two processes of the site, each with one request, and return what their pages show."""
    environment = {key: value for key, value in os.environ.items() if "DJANGO" not in key}
    if multiple:
        environment["PROMETHEUS_MULTIPROC_DIR"] = str(folder / "files")
        (folder / "files").mkdir()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SITE, server.url("postgres"), str(stats_dir)],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        found = []
        for process in processes:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("\n")
            process.stdin.flush()
            found.append(json.loads(process.stdout.readline()))
    finally:
        for process in processes:
            process.communicate()
    return found


def test_one_registry_of_a_process_has_its_own_counters_and_the_page_all(
    server: EmbeddedServer, tmp_path: Path, stats_dir: Path
) -> None:
    for found in answers(server, tmp_path, stats_dir, multiple=False):
        assert found["/own"]["asked_total"] == 1
        assert found["/own"]["django_pooled_checkouts_total"] == 1
        assert found["/pools"] == {"django_pooled_checkouts_total": 2}
        assert found["/metrics"]["django_pooled_checkouts_total"] == 1
        assert found["/metrics"]["django_http_requests_before_middlewares_total"] == 4


def test_prometheus_clients_files_for_several_processes_and_our_sums_agree(
    server: EmbeddedServer, tmp_path: Path, stats_dir: Path
) -> None:
    for found in answers(server, tmp_path, stats_dir, multiple=True):
        assert found["/own"]["asked_total"] == 2
        assert found["/own"]["django_pooled_checkouts_total"] == 2
        assert found["/pools"] == {"django_pooled_checkouts_total": 2}
        # django-prometheus makes a registry of prometheus_client's files alone.
        assert found["/metrics"]["asked_total"] == 2
        assert "django_pooled_checkouts_total" not in found["/metrics"]

"""Metrics for OpenTelemetry, read by its own SDK; what its instrumentation of psycopg leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from django.db import connections

from django_pooled import CheckoutTimeout, registry
from django_pooled.signals import (
    connection_checked_in,
    connection_checked_out,
    connection_opened,
)
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    from embedded_postgres import EmbeddedServer
    from tests.support.pools import MakeDatabase

pytest.importorskip("opentelemetry.sdk", reason="the SDK is not installed")

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    Histogram,
    InMemoryMetricReader,
    Sum,
)
from opentelemetry.semconv._incubating.attributes import db_attributes
from opentelemetry.semconv._incubating.metrics import db_metrics

from django_pooled.metrics.opentelemetry import instrument, uninstrument

ROOT = Path(__file__).resolve().parents[3]

Points = dict[str, dict[tuple[str, ...], Any]]


@pytest.fixture
def reader() -> Iterator[InMemoryMetricReader]:
    """What the SDK has collected of the pools."""
    made = InMemoryMetricReader()
    provider = MeterProvider([made])
    instrument(provider)
    yield made
    uninstrument()
    provider.shutdown()


def metrics(reader: InMemoryMetricReader) -> dict[str, Any]:
    data = reader.get_metrics_data()
    if data is None:
        return {}
    [resource] = data.resource_metrics
    [scope] = resource.scope_metrics
    assert scope.scope.name == "django_pooled"
    return {metric.name: metric for metric in scope.metrics}


def points(reader: InMemoryMetricReader, pool: str) -> Points:
    """Return the points of one pool by metric, each by its other attributes."""
    found: Points = {}
    for name, metric in metrics(reader).items():
        for point in metric.data.data_points:
            attributes = dict(point.attributes)
            if attributes.pop("db.client.connection.pool.name") == pool:
                found.setdefault(name, {})[tuple(attributes.values())] = point
    return found


def query(alias: str) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT 1")


def test_names_units_and_kinds_are_those_of_the_conventions(
    reader: InMemoryMetricReader, server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server)
    query(alias)
    connections[alias].close()
    found = {
        name: (metric.unit, type(metric.data), getattr(metric.data, "is_monotonic", None))
        for name, metric in metrics(reader).items()
    }
    assert found == {
        db_metrics.DB_CLIENT_CONNECTION_COUNT: ("{connection}", Sum, False),
        db_metrics.DB_CLIENT_CONNECTION_IDLE_MAX: ("{connection}", Sum, False),
        db_metrics.DB_CLIENT_CONNECTION_IDLE_MIN: ("{connection}", Sum, False),
        db_metrics.DB_CLIENT_CONNECTION_MAX: ("{connection}", Sum, False),
        db_metrics.DB_CLIENT_CONNECTION_PENDING_REQUESTS: ("{request}", Sum, False),
        db_metrics.DB_CLIENT_CONNECTION_TIMEOUTS: ("{timeout}", Sum, True),
        db_metrics.DB_CLIENT_CONNECTION_CREATE_TIME: ("s", Histogram, None),
        db_metrics.DB_CLIENT_CONNECTION_USE_TIME: ("s", Histogram, None),
        db_metrics.DB_CLIENT_CONNECTION_WAIT_TIME: ("s", Histogram, None),
    }
    attributes = {
        key
        for metric in metrics(reader).values()
        for point in metric.data.data_points
        for key in point.attributes
    }
    assert attributes == {
        db_attributes.DB_CLIENT_CONNECTION_POOL_NAME,
        db_attributes.DB_CLIENT_CONNECTION_STATE,
    }


def test_the_figures_are_those_of_the_pool(
    reader: InMemoryMetricReader, server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server, name="shop", min_size=0, max_size=3)
    query(alias)
    found = points(reader, "shop")
    count = found["db.client.connection.count"]
    assert {state: point.value for state, point in count.items()} == {("idle",): 0, ("used",): 1}
    connections[alias].close()
    found = points(reader, "shop")
    assert found["db.client.connection.count"]["idle",].value == 1
    for name, value in (("max", 3), ("idle.max", 3), ("idle.min", 0), ("pending_requests", 0)):
        assert found[f"db.client.connection.{name}"][()].value == value
    for name in ("create_time", "wait_time", "use_time"):
        point = found[f"db.client.connection.{name}"][()]
        assert point.count == 1
        assert 0 < point.sum < 10
        # The SDK's own are meant for milliseconds: most of what there is would be in the first.
        assert point.explicit_bounds[0] == pytest.approx(0.0001)
        assert point.explicit_bounds[-1] == pytest.approx(100.0)


def test_waiters_and_timeouts_are_told_apart(
    reader: InMemoryMetricReader, server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server, max_size=1, timeout=1.0)
    query(alias)
    failures: list[Exception] = []

    def wait() -> None:
        try:
            query(alias)
        except CheckoutTimeout as error:
            failures.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    pending = "db.client.connection.pending_requests"
    wait_until(lambda: points(reader, alias)[pending][()].value == 1)
    assert points(reader, alias)["db.client.connection.timeouts"][()].value == 0
    waiter.join()
    assert len(failures) == 1
    assert points(reader, alias)["db.client.connection.timeouts"][()].value == 1
    # The counter does not go back when another pool of the name takes the place of this one.
    connections[alias].close()
    registry.close_pools_of(alias)
    query(alias)
    assert points(reader, alias)["db.client.connection.timeouts"][()].value == 1


def test_two_pools_of_one_name_are_one(
    reader: InMemoryMetricReader, server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    for alias in (make_database(server, name="both"), make_database(server, name="both")):
        query(alias)
    found = points(reader, "both")
    assert found["db.client.connection.count"]["used",].value == 2
    assert found["db.client.connection.max"][()].value == 20
    assert found["db.client.connection.wait_time"][()].count == 2


def test_after_uninstrument_nothing_is_reported_or_listened_to(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    first, second = InMemoryMetricReader(), InMemoryMetricReader()
    instrument(MeterProvider([first]))
    alias = make_database(server)
    try:
        # Another call changes nothing.
        instrument(MeterProvider([second]))
        query(alias)
        assert points(first, alias)
        assert metrics(second) == {}
    finally:
        uninstrument()
        uninstrument()
    for signal in (connection_opened, connection_checked_out, connection_checked_in):
        assert not signal.receivers
    connections[alias].close()
    query(alias)
    gauges = {name for name in metrics(first) if not name.endswith("_time")}
    assert gauges == set()


# Instrumented by its settings, as a server that loads the application before it forks has it.
PRELOADED = """
import json, os, sys
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from django.conf import settings
import dj_database_url
from django_pooled.metrics.opentelemetry import instrument

reader = InMemoryMetricReader()
instrument(MeterProvider([reader]))
settings.configure(DATABASES={"default": {
    **dj_database_url.parse(sys.argv[1], engine="django_pooled"),
    "OPTIONS": {"pool": {"max_size": 1, "timeout": 3.0, "stats_dir": False}},
}})
import django
django.setup()
from django.db import OperationalError, connection
from threading import Thread

def query():
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except OperationalError:
        pass

def figures():
    [resource] = reader.get_metrics_data().resource_metrics
    [scope] = resource.scope_metrics
    return {
        metric.name.removeprefix("db.client.connection."): [
            getattr(point, "value", None) for point in metric.data.data_points
        ]
        for metric in scope.metrics
        if not metric.name.endswith("_time")
    }

assert reader.get_metrics_data() is None
query()
late = Thread(target=query)
late.start()
late.join()
parent = figures()
out, into = os.pipe()
if not os.fork():
    before = reader.get_metrics_data()
    names = [m.name for m in before.resource_metrics[0].scope_metrics[0].metrics]
    query()
    os.write(into, json.dumps([sorted(names), figures()]).encode())
    os._exit(0)
os.wait()
print(json.dumps([parent, *json.loads(os.read(out, 100000))]))
"""


def test_a_forked_child_reports_pools_of_its_own(server: EmbeddedServer) -> None:
    environment = {key: value for key, value in os.environ.items() if "DJANGO" not in key}
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", PRELOADED, server.url("postgres")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    parent, names_before, child = json.loads(done.stdout)
    assert (parent["count"], parent["timeouts"]) == ([0, 1], [1])
    # Durations that were recorded before the fork are the SDK's, which keeps them.
    assert all(name.endswith("_time") for name in names_before)
    assert (child["count"], child["timeouts"]) == ([0, 1], [0])


def test_pools_work_after_psycopgs_instrumentation_was_taken_away(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    instrumentation = pytest.importorskip(
        "opentelemetry.instrumentation.psycopg", reason="it is not installed"
    )
    originals = [
        (cls, vars(cls)["connect"]) for cls in (psycopg.Connection, psycopg.AsyncConnection)
    ]
    plain = psycopg.connect
    instrumentor = instrumentation.PsycopgInstrumentor()
    alias = make_database(server)
    try:
        instrumentor.instrument()
        query(alias)
        connections[alias].close()
        registry.close_pools_of(alias)
        instrumentor.uninstrument()
        # Nothing to be made robust against any more, once this fails.
        assert vars(psycopg.Connection)["connect"].__self__ is psycopg.Connection
        query(alias)
    finally:
        psycopg.connect = plain
        for cls, connect in originals:
            cls.connect = connect  # type: ignore[method-assign]

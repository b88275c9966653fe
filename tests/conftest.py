"""Fixtures: servers that run for the session or belong to one test, and a proxy before them."""

from __future__ import annotations

import functools
import itertools
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from embedded_postgres import free_port, take_share
from tests.servers.fault_proxy import FaultProxy, ProxyProcess
from tests.servers.postgresql import Servers, versions
from tests.support import attempts as replaying

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from embedded_postgres import EmbeddedServer
    from tests.support.attempts import Attempts


pytest_plugins = ["tests.support.pools", "tests.sites.workers.fixtures"]

TESTS = Path(__file__).parent

_numbers = itertools.count()


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Run single files in this process, since workers take a while to start.

    Else two workers for each core: most tests wait for a server, a worker or a time limit.
    """
    return 0 if all(".py" in argument for argument in config.args) else 2 * (os.cpu_count() or 1)


def pytest_configure(config: pytest.Config) -> None:
    """Give each worker of pytest-xdist ports of its own, and all processes compiled modules."""
    _keep_compiled_modules(config)
    # A script's background job, as under nohup, ignores Ctrl-C, and all that it starts does.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(config, "workerinput"):
        worker = config.workerinput
        # One that takes a crashed worker's place has a number of its own.
        index = int(worker["workerid"].removeprefix("gw")) % worker["workercount"]
        take_share(index, worker["workercount"])


def _keep_compiled_modules(config: pytest.Config) -> None:
    """Have modules compiled once, in a folder of the run, where none are kept beside their sources.

    PYTHONDONTWRITEBYTECODE is usual in containers. The tests start hundreds of processes, and
    each would compile the package; each worker would rewrite the assertions of all tests.
    """
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", None) is None:
        return
    folder = tempfile.mkdtemp(prefix="pycache-")
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix = folder
    sys.dont_write_bytecode = False
    config.add_cleanup(functools.partial(shutil.rmtree, folder, ignore_errors=True))


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> None:
    """Refuse tests that have no folder."""
    if module_path.parent == TESTS:
        raise parent.CollectError(f"move {module_path.name} into a folder, as tests/unit")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with its folder's name, before ``-m`` looks at the marks."""
    for item in items:
        item.add_marker(item.path.relative_to(TESTS).parts[0])


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """The maker of all servers of this session."""
    made = Servers()
    yield made
    made.close()


@pytest.fixture(scope="session")
def shared(servers: Servers) -> Callable[[str], EmbeddedServer]:
    """The session's servers by version, started when first asked for."""

    @functools.cache
    def started(version: str) -> EmbeddedServer:
        made = servers.make(version)
        made.start()
        return made

    return started


@pytest.fixture(scope="session")
def server(shared: Callable[[str], EmbeddedServer]) -> EmbeddedServer:
    """The server of Django's test database; not to be stopped, and with no data to be relied on."""
    return shared(versions()[-1])


@pytest.fixture(params=versions(), ids=lambda version: f"postgresql{version}")
def shared_server(
    request: pytest.FixtureRequest, shared: Callable[[str], EmbeddedServer]
) -> EmbeddedServer:
    """As ``server``, once of the oldest and once of the newest version."""
    return shared(request.param)


@pytest.fixture
def own_database(shared_server: EmbeddedServer) -> Iterator[str]:
    """A new database of the shared server; roles that the test makes go with it."""
    with psycopg.connect(**shared_server.parameters(), autocommit=True) as admin:
        name = f"own_{next(_numbers)}"
        admin.execute(f"CREATE DATABASE {name}")
        roles = "SELECT rolname FROM pg_roles"
        before = set(admin.execute(roles))
        yield name
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        for (role,) in set(admin.execute(roles)) - before:
            admin.execute(f"DROP ROLE {role}")


@pytest.fixture(scope="module")
def private_server(servers: Servers) -> Iterator[EmbeddedServer]:
    """A server of one file's tests: to count all sessions, or to restart it."""
    made = servers.make()
    made.start()
    yield made
    servers.remove(made)


@pytest.fixture
def make_server(servers: Servers) -> Iterator[Callable[..., EmbeddedServer]]:
    """Make and start servers that are the test's own; arguments as ``Servers.make``."""
    mine: list[EmbeddedServer] = []

    def make(*args: Any, **kwargs: Any) -> EmbeddedServer:
        made = servers.make(*args, **kwargs)
        mine.append(made)
        made.start()
        return made

    yield make
    # A standby leaves before its primary does.
    for made in reversed(mine):
        servers.remove(made)


@pytest.fixture(params=versions(), ids=lambda version: f"postgresql{version}")
def own_server(
    request: pytest.FixtureRequest, make_server: Callable[..., EmbeddedServer]
) -> EmbeddedServer:
    """A server to stop and kill, once of the oldest and once of the newest version."""
    return make_server(request.param)


@pytest.fixture(scope="session")
def proxy_process() -> Iterator[Callable[[], ProxyProcess]]:
    """The process of this session's proxies, made when it is first asked for."""
    made: list[ProxyProcess] = []

    def process() -> ProxyProcess:
        # A test that ran into its time limit may have left one out of step.
        if not made or not made[-1].usable:
            made.append(ProxyProcess())
        return made[-1]

    yield process
    for one in made:
        one.close()


@pytest.fixture
def make_proxy(
    proxy_process: Callable[[], ProxyProcess],
) -> Iterator[Callable[[EmbeddedServer], FaultProxy]]:
    """Put a proxy before a server."""
    mine: list[FaultProxy] = []

    def make(server: EmbeddedServer) -> FaultProxy:
        process = proxy_process()
        mine.append(FaultProxy(server.host, server.port, listen=free_port(), process=process))
        return mine[-1]

    yield make
    for proxy in mine:
        proxy.close()


@pytest.fixture
def proxy(make_proxy: Callable[[EmbeddedServer], FaultProxy], server: EmbeddedServer) -> FaultProxy:
    """A proxy before the session's server: log in as there, on the proxy's port."""
    return make_proxy(server)


@pytest.fixture
def stats_dir() -> Iterator[Path]:
    """A folder to publish in; not in pytest's, whose path may be too long for a socket."""
    made = Path(tempfile.mkdtemp(prefix="stats-", dir="/tmp"))
    yield made
    shutil.rmtree(made)


@pytest.fixture
def public_folder(stats_dir: Path) -> Path:
    """A folder to publish in, in which everybody may make things, as in /tmp."""
    stats_dir.chmod(0o1777)
    return stats_dir


@pytest.fixture
def attempts() -> Attempts:
    """The attempts of this test's call."""
    replaying.attempts.reset()
    return replaying.attempts


@pytest.fixture(scope="session")
def django_db_modify_db_settings(
    django_db_modify_db_settings_parallel_suffix: None, server: EmbeddedServer
) -> None:
    """Lead Django to the session's server before pytest-django makes the test database there."""
    from django.conf import settings
    from django.db import connections

    found = server.django_settings()
    del found["NAME"]
    for alias in connections:
        # The same dictionary as a rule, but not where a test run has copied it.
        settings.DATABASES[alias].update(found)
        connections[alias].settings_dict.update(found)

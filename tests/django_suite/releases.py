"""Django's sources from PyPI, and a virtual environment in which their test suite runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["RELEASES", "Release", "ReleaseError", "newest_here"]

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("DJANGO_POOLED_SUITE_CACHE", ROOT / ".django_suite"))

#: The releases whose suites are compared, and the Pythons that each runs on.
RELEASES = {
    "5.2": ("5.2.19", SpecifierSet(">=3.10,<3.15")),
    "6.0": ("6.0.10", SpecifierSet(">=3.12,<3.15")),
    "6.1": ("6.1.3", SpecifierSet(">=3.12,<3.16")),
}

#: What the suite would use, and skips without: a browser, servers and what has to be compiled.
LEFT_OUT = {"pylibmc", "pymemcache", "pywatchman", "redis", "selenium"}


class ReleaseError(Exception):
    """What is needed cannot be had here; the message says what."""


@dataclass(frozen=True)
class Release:
    """One release of Django.

    Args:
        version: as on PyPI, such as "6.1.3".
        python: the interpreter that its virtual environment is made with.
    """

    version: str
    python: Path

    @classmethod
    def find(cls, series: str, python: Path | None = None) -> Release:
        """Return the release that stands for a series.

        Args:
            series: such as "6.1".
            python: the interpreter; by default this one, or the newest to be found that fits.

        Raises:
            ReleaseError: an unknown series, or no Python that it runs on.
        """
        try:
            version, fitting = RELEASES[series]
        except KeyError:
            raise ReleaseError(
                f"Django {series!r} is not known here; expected one of {', '.join(RELEASES)}"
            ) from None
        if python is not None:
            return cls(version, python)
        for found in _pythons():
            if _python_version(found) in fitting:
                return cls(version, found)
        raise ReleaseError(f"Django {series} runs on Python {fitting}; none is to be found here")

    @property
    def name(self) -> str:
        """A name for folders: the release and the Python."""
        return f"django-{self.version}-python{_python_version(self.python)}"

    @property
    def sources(self) -> Path:
        """The unpacked source distribution; fetched where it is missing."""
        folder = CACHE / f"django-{self.version}"
        if not folder.exists():
            self._fetch(folder)
        return folder

    def modules(self, left_out: Iterable[str] = ()) -> list[str]:
        """Return the names of all test modules, but those of GIS, which need engines of their own.

        Args:
            left_out: further ones to leave out.
        """
        # What runtests.py does not take for test modules itself.
        not_modules = {"import_error_package", "test_runner_apps"}
        found = {path.parent.name for path in (self.sources / "tests").glob("*/__init__.py")}
        return sorted(found - not_modules - {"gis_tests"} - set(left_out))

    def environment(self, constraints: str = "") -> Path:
        """Return the interpreter of the virtual environment; made where it is missing.

        Args:
            constraints: versions to install, as ``pip freeze`` prints them; the newest without.
        """
        folder = CACHE / f"venv-{self.name}"
        python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        made_with = folder / "made_with.json"
        wanted = json.dumps([self._requirements(), constraints])
        if made_with.exists() and made_with.read_text() == wanted:
            return python
        shutil.rmtree(folder, ignore_errors=True)
        CACHE.mkdir(parents=True, exist_ok=True)
        file = CACHE / f"constraints-{self.name}.txt"
        file.write_text(constraints)
        _run(self.python, "-m", "venv", folder)
        install = (python, "-m", "pip", "install", "--quiet", "--constraint", file)
        _run(*install, *self._requirements(), f"Django=={self.version}")
        _run(*install, "--editable", f"{ROOT}[binary]")
        made_with.write_text(wanted)
        return python

    def _requirements(self) -> list[str]:
        lines = (self.sources / "tests/requirements/py3.txt").read_text().splitlines()
        found = [Requirement(line) for line in lines if line and not line.startswith("#")]
        return [str(requirement) for requirement in found if requirement.name not in LEFT_OUT]

    def _fetch(self, folder: Path) -> None:
        downloads = CACHE / "downloads"
        downloads.mkdir(parents=True, exist_ok=True)
        # The release's own Python: pip asks the sources what they are called.
        _run(
            *(self.python, "-m", "pip", "download", "--quiet", "--no-deps"),
            *("--no-binary", ":all:", "--dest", downloads, f"Django=={self.version}"),
        )
        with tarfile.open(downloads / f"django-{self.version}.tar.gz") as archive:
            archive.extractall(downloads, filter="data")
        (downloads / folder.name).rename(folder)


def newest_here() -> str:
    """Return the newest series for which there is a Python here."""
    for series in reversed(RELEASES):
        try:
            Release.find(series)
        except ReleaseError:
            continue
        return series
    raise ReleaseError("no Python for any release is to be found here")


def _pythons() -> list[Path]:
    """This interpreter, then those on the PATH and pyenv's, from the newest."""
    minors = range(15, 9, -1)
    on_path = [shutil.which(f"python3.{minor}") for minor in minors]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    by_pyenv = [
        path for minor in minors for path in sorted(pyenv.glob(f"3.{minor}.*/bin/python3"))[-1:]
    ]
    candidates = [Path(sys.executable), *(Path(found) for found in on_path if found), *by_pyenv]
    return [path for path in candidates if _python_version(path) != "0"]


def _python_version(python: Path) -> str:
    """Its major and minor version, or "0" for one that does not run."""
    # A shim of pyenv is on the PATH also for versions that are not switched on.
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return found.stdout.strip() if re.fullmatch(r"3\.\d+\s*", found.stdout) else "0"


def _run(*command: str | Path) -> None:
    try:
        subprocess.run(command, check=True)
    except subprocess.CalledProcessError as error:
        raise ReleaseError(f"failed: {' '.join(map(str, error.cmd))}") from error

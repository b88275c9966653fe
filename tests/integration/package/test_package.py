"""What the built wheel and sdist hold, and what they leave out."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import BytesParser
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import pytest

from tests.integration.package.conftest import build

if TYPE_CHECKING:
    from email.message import Message
    from pathlib import Path


@pytest.fixture(scope="module")
def wheel_files(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return BytesParser().parsebytes(archive.read(name))


@pytest.fixture(scope="module")
def sdist_files(built: Path) -> set[str]:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = [PurePosixPath(member.name) for member in archive if member.isfile()]
    return {str(name.relative_to(name.parts[0])) for name in names}


def files_under(source: Path, folder: str) -> set[str]:
    """Every file of a folder of the project but litter, as a path relative to the project."""
    return {
        path.relative_to(source).as_posix()
        for path in (source / folder).rglob("*")
        if path.is_file() and not {"__pycache__", ".postgres"} & set(path.parts)
    }


def test_the_wheel_holds_the_whole_package_and_nothing_else(
    source: Path, wheel_files: set[str]
) -> None:
    packaged = {name for name in wheel_files if ".dist-info/" not in name}
    assert packaged == files_under(source, "django_pooled")


@pytest.mark.parametrize(
    "name",
    [
        "django_pooled/__init__.py",
        "django_pooled/base.py",
        "django_pooled/dashboard/static/django_pooled_dashboard/dashboard.css",
        "django_pooled/dashboard/static/django_pooled_dashboard/uplot/LICENSE",
        "django_pooled/dashboard/static/django_pooled_dashboard/uplot/uPlot.iife.min.js",
        "django_pooled/dashboard/templates/django_pooled_dashboard/page.html",
        "django_pooled/management/commands/poolstats.py",
        "django_pooled/py.typed",
    ],
)
def test_the_wheel_holds(wheel_files: set[str], name: str) -> None:
    assert name in wheel_files


def test_two_builds_make_the_same_wheel(source: Path, wheel: Path, tmp_path: Path) -> None:
    clone = shutil.copytree(source, tmp_path / "clone")
    for path in clone.rglob("*.py"):
        os.utime(path, (0, 0))
    build(clone, tmp_path / "again")
    (again,) = (tmp_path / "again").glob("*.whl")
    assert again.read_bytes() == wheel.read_bytes()


def test_the_wheel_names_its_licence_and_brings_its_text(
    wheel_files: set[str], metadata: Message
) -> None:
    assert metadata["License-Expression"] == "BSD-3-Clause AND MIT"
    files = metadata.get_all("License-File") or []
    assert len(files) == 2
    for file in files:
        assert any(name.endswith(f".dist-info/licenses/{file}") for name in wheel_files)


def test_the_metadata_describes_the_project(metadata: Message) -> None:
    assert metadata["Name"] == "django-pooled"
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert "@retry_transaction" in str(metadata.get_payload())


def test_libpq_comes_with_an_extra(metadata: Message) -> None:
    required = {line.replace(" ", "") for line in metadata.get_all("Requires-Dist", [])}
    assert "psycopg>=3.2.4" in required
    for extra in ("binary", "c"):
        assert f'psycopg[{extra}]>=3.2.4;extra=="{extra}"' in required


def test_the_extras_of_the_readme_exist(metadata: Message) -> None:
    assert {"example", "test"} <= set(metadata.get_all("Provides-Extra", []))


@pytest.mark.parametrize(
    "folder",
    [
        "benchmarks",
        "django_pooled/dashboard",
        "docs",
        "embedded_postgres",
        "example_project",
        "tests",
    ],
)
def test_the_sdist_holds_the_folder(source: Path, sdist_files: set[str], folder: str) -> None:
    assert files_under(source, folder) <= sdist_files


def test_the_sdist_holds_what_runs_the_tests(sdist_files: set[str]) -> None:
    assert {
        ".ci/run",
        "CHANGELOG.md",
        "LICENSE",
        "README.md",
        "example_project/manage.py",
        "pyproject.toml",
        "setup.cfg",
        "tests/conftest.py",
        "tox.ini",
    } <= sdist_files


def test_the_sdist_holds_the_pages_beside_the_readme(sdist_files: set[str]) -> None:
    assert {"CONTRIBUTING.md", "SECURITY.md"} <= sdist_files


def test_the_sdist_leaves_out_caches_and_the_data_of_the_example(sdist_files: set[str]) -> None:
    assert not {name for name in sdist_files if "__pycache__" in name or ".postgres/" in name}


def test_the_package_of_the_wheel_imports_without_settings(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    program = (
        "import django_pooled; from django_pooled import *;"
        "print(django_pooled.__file__, django_pooled.__version__, retry_transaction)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(str(tmp_path))

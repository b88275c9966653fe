"""The sdist and the wheel of the project, built once for all tests."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.support.made_once import made_once
from tests.support.programs import run_program

ROOT = Path(__file__).resolve().parents[3]
NOT_SOURCE = shutil.ignore_patterns(
    ".git", ".venv*", ".tox", ".*_cache", "__pycache__", "*.egg-info", "build", "dist", ".postgres"
)


def build(source: Path, folder: Path) -> None:
    """Build the sdist, and the wheel from it, as a release is built."""
    # Without isolation: setuptools comes with the extra "test", and no package index is asked.
    result = run_program(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(source)],
        env={**os.environ, "SOURCE_DATE_EPOCH": "1767225600"},
    )
    assert result.returncode == 0, result.stdout


def _copy_and_build(folder: Path) -> None:
    source = folder / "project"
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(ROOT, source, ignore=NOT_SOURCE)
    for litter in ("tests/__pycache__/x.pyc", "example_project/.postgres/password"):
        (source / litter).parent.mkdir(exist_ok=True)
        (source / litter).write_text("litter", encoding="utf-8")
    build(source, folder / "built")


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the project and with what was built from it."""
    return made_once(tmp_path_factory, "package", _copy_and_build)


@pytest.fixture(scope="session")
def source(package: Path) -> Path:
    """A copy of the project, so that building leaves nothing behind, with litter to be left out."""
    return package / "project"


@pytest.fixture(scope="session")
def built(package: Path) -> Path:
    """The folder with the sdist, and with the wheel that was made from the sdist."""
    return package / "built"


@pytest.fixture(scope="session")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path

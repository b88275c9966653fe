"""A release of psycopg_pool that nobody has seen yet."""

from __future__ import annotations

import os
import re
import shutil
from importlib.metadata import distribution
from pathlib import Path

import psycopg_pool

__all__ = ["VERSION", "environment_with", "next_release"]

VERSION = "3.97.0"


def next_release(folder: Path, *changes: tuple[str, str]) -> Path:
    """Make the release from the one that is installed, and return the folder that it is in.

    Args:
        folder: Where to make it.
        changes: Regular expressions, and what is put in place of what they find.
    """
    package = Path(psycopg_pool.__file__).parent
    shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    metadata = folder / f"psycopg_pool-{VERSION}.dist-info"
    metadata.mkdir()
    told = distribution("psycopg-pool").read_text("METADATA")
    assert told is not None
    (metadata / "METADATA").write_text(re.sub(r"(?m)^Version: .*", f"Version: {VERSION}", told))
    found = set()
    for path in (folder / package.name).glob("*.py"):
        text = path.read_text()
        for pattern, replacement in changes:
            text, number = re.subn(pattern, replacement, text)
            found |= {pattern} if number else set()
        path.write_text(text)
    assert found == {pattern for pattern, _ in changes}
    return folder


def environment_with(packages: Path) -> dict[str, str]:
    """Return the environment of a process that finds *packages* before those installed."""
    path = [str(packages), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}

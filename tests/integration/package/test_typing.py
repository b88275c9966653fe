"""What type checkers make of the built wheel, in a project that uses it rightly and wrongly.

The project is tests/typing: mypy checks it with django-stubs and their plugin, pyright with
django-stubs alone; both are strict.
"""

from __future__ import annotations

import json
import os
import sys
import sysconfig
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.integration.package.conftest import ROOT
from tests.support.made_once import made_once
from tests.support.programs import run_program
from tests.support.public_names import NAMES, WHOLE_MODULES

PROJECT = ROOT / "tests" / "typing"

# The public engine is made of these classes.
ENGINE = "django_pooled.backend.wrapper.DatabaseWrapper"
OWNERSHIP = "django_pooled.backend.ownership.Ownership"
TRANSACTIONS = "django_pooled.backend.transactions.Transactions"

# django-stubs declares these in the base class, and so pyright knows their types. Its report counts
# them all the same where a subclass assigns to them.
LEFT_TO_DJANGO = {
    "django_pooled.base.DatabaseWrapper",
    ENGINE,
    f"{ENGINE}.close_if_health_check_failed",
    f"{ENGINE}.connection",
    f"{ENGINE}.isolation_level",
    OWNERSHIP,
    f"{OWNERSHIP}.atomic_blocks",
    f"{OWNERSHIP}.connection",
    f"{OWNERSHIP}.in_atomic_block",
    f"{OWNERSHIP}.needs_rollback",
    f"{OWNERSHIP}.run_on_commit",
    f"{OWNERSHIP}.savepoint_ids",
    TRANSACTIONS,
}

# It does not look into psycopg either, and takes what is built on a class of psycopg's over one of
# ours for unknown. Where the names are used it knows them; see the test before.
LEFT_TO_PSYCOPG = {
    f"{ENGINE}.checked_out_from",
    f"{ENGINE}.gives_back",
    f"{ENGINE}.last_pool",
    f"{ENGINE}.pool",
    f"{OWNERSHIP}.attempt",
    f"{OWNERSHIP}.checked_out_from",
    f"{OWNERSHIP}.gives_back",
    f"{OWNERSHIP}.keeps",
    f"{OWNERSHIP}.pool",
    f"{TRANSACTIONS}.note_write",
}

pytestmark = pytest.mark.skipif(
    not (find_spec("mypy_django_plugin") and find_spec("pyright")),
    reason="the type checkers of the extra 'lint' are not installed",
)


def run(*command: object, cwd: Path = PROJECT, statuses: tuple[int, ...] = (0,)) -> str:
    """Run a program with a clean environment; return its output."""
    clean = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
    done = run_program([str(part) for part in command], cwd=cwd, env=clean)
    assert done.returncode in statuses, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the wheel, and with all else that this one has."""

    def make(folder: Path) -> None:
        run(sys.executable, "-m", "venv", "--clear", "--without-pip", folder, cwd=folder)
        ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
        packages = Path(run(folder / "bin" / "python", "-c", ask).strip())
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(packages)
        (packages / "others.pth").write_text(sysconfig.get_path("purelib"))

    return made_once(tmp_path_factory, "typing", make) / "bin" / "python"


def test_mypy_finds_no_fault_but_those_that_the_project_expects(python: Path) -> None:
    cache = ROOT / ".mypy_cache" / "typing"
    run(sys.executable, "-m", "mypy", f"--python-executable={python}", f"--cache-dir={cache}")


def test_pyright_finds_no_fault_but_those_that_the_project_expects(python: Path) -> None:
    run(sys.executable, "-m", "pyright", f"--pythonpath={python}")


def test_pyright_knows_the_type_of_every_public_name(python: Path) -> None:
    # It takes the first Python of PATH, whatever it is told.
    report = json.loads(
        run(
            *("env", f"PATH={python.parent}{os.pathsep}{os.environ['PATH']}"),
            *(sys.executable, "-m", "pyright", "--outputjson"),
            *("--verifytypes=django_pooled", "--ignoreexternal"),
            statuses=(0, 1),
        )
    )["typeCompleteness"]
    assert report["pyTypedPath"].startswith(str(python.parent.parent))
    symbols = {found["name"]: found for found in report["symbols"] if found["isExported"]}
    names = {ENGINE, OWNERSHIP, TRANSACTIONS, *NAMES} - set(WHOLE_MODULES)
    public = {
        name: symbols[name]
        for name in symbols
        if any(name == it or name.startswith(f"{it}.") for it in names)
    }
    assert len(public) > 50
    unknown = {
        name
        for name, found in public.items()
        if found["isTypeAmbiguous"] or not found["isTypeKnown"]
    }
    assert unknown == LEFT_TO_DJANGO | LEFT_TO_PSYCOPG

"""What type checkers make of the built wheel, in a project that uses it rightly and wrongly.

The project is tests/typing: mypy checks it with django-stubs and their plugin, pyright with
django-stubs alone; both are strict.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import sysconfig
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.integration.package.test_package import NOT_SOURCE, ROOT
from tests.support.programs import run_program
from tests.support.public_names import NAMES, WHOLE_MODULES

PROJECT = ROOT / "tests" / "typing"

# The public engine is made of this class.
ENGINE = "django_pooled.backend.wrapper.DatabaseWrapper"

# django-stubs declares these in the base class, and so pyright knows their types. Its report counts
# them all the same where a subclass assigns to them.
LEFT_TO_DJANGO = {
    "django_pooled.base.DatabaseWrapper",
    ENGINE,
    f"{ENGINE}.atomic_blocks",
    f"{ENGINE}.close_if_health_check_failed",
    f"{ENGINE}.connection",
    f"{ENGINE}.in_atomic_block",
    f"{ENGINE}.isolation_level",
    f"{ENGINE}.needs_rollback",
    f"{ENGINE}.run_on_commit",
    f"{ENGINE}.savepoint_ids",
}

# It does not look into psycopg either, and takes what is built on a class of psycopg's over one of
# ours for unknown. Where the names are used it knows them; see the test before.
LEFT_TO_PSYCOPG = {
    f"{ENGINE}.checked_out_from",
    f"{ENGINE}.gives_back",
    f"{ENGINE}.keeps",
    f"{ENGINE}.note_write",
    f"{ENGINE}.pool",
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
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the wheel, and with all else that this one has."""
    folder = tmp_path_factory.mktemp("typing")
    source, environment = folder / "source", folder / "environment"
    shutil.copytree(ROOT, source, ignore=NOT_SOURCE)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir"]
    run(*build, folder, source, cwd=folder)
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=folder)
    program = environment / "bin" / "python"
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(run(program, "-c", ask).strip())
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    return program


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
    names = {ENGINE, *NAMES} - set(WHOLE_MODULES)
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

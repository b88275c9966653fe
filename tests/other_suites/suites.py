"""The suites: what each is, what it needs, and how its settings learn of engine and server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.django_suite.releases import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from embedded_postgres import EmbeddedServer

__all__ = ["NATIVE", "SUITES", "Suite"]

NATIVE = "django.db.backends.postgresql"


@dataclass(frozen=True)
class Suite:
    """A project's test suite.

    Args:
        project: its name on PyPI, whose source distribution holds the tests.
        version: the release that is run unless another is asked for.
        requirements: pip's arguments for the project and what its tests need, with ``{source}``
            for the folder of its sources.
        command: what runs the tests, after the name of the interpreter.
        label: what is run of them when nothing else is asked for.
        path: where the interpreter finds our part of it.
        environment: how the settings learn of the server and the name of the database.
        leaves: folders of the sources that a run leaves files in: the next one starts without.
        prepare: changes what has to be changed in the sources.
    """

    project: str
    version: str
    requirements: Sequence[str]
    command: Sequence[str]
    label: str
    path: Path
    environment: Callable[[EmbeddedServer, str], dict[str, str]]
    leaves: Sequence[str] = ()
    prepare: Callable[[Path], None] = lambda source: None


def _name_the_engine_in_conftest(source: Path) -> None:
    # Which tests are skipped, and whether django.contrib.postgres is installed, hangs on two
    # comparisons with the engine's name: who runs the suite on another engine for PostgreSQL
    # has to name it there too.
    path = source / "tests" / "conftest.py"
    text = path.read_text()
    if "os.environ['ENGINE']" in text:
        return
    if text.count(f"'{NATIVE}'") != 2:
        raise ValueError(f"{path} no longer names the engine in two places")
    path.write_text(text.replace(f"'{NATIVE}'", "os.environ['ENGINE']"))


SUITES = {
    "drf": Suite(
        project="djangorestframework",
        version="3.18.3",
        requirements=(
            "--editable={source}",
            "--group={source}/pyproject.toml:test",
            "--group={source}/pyproject.toml:optional",
        ),
        command=("-m", "pytest", "-p", "record_pytest"),
        label="tests",
        # Not the root of this project: there as here, the tests are the package "tests".
        path=Path(__file__).parent / "inside",
        # The scheme is one that record_pytest registers. "django_pooled:" can be none: there is
        # no underscore in a scheme. https://www.rfc-editor.org/rfc/rfc3986#section-3.1
        environment=lambda server, database: {
            "DATABASE_URL": server.url(database).replace("postgres:", "tested:", 1)
        },
        prepare=_name_the_engine_in_conftest,
    ),
    "wagtail": Suite(
        project="wagtail",
        version="8.0.1",
        # soupsieve 3 and later do not look into <template>: 47 tests fail, with every engine.
        requirements=("--editable={source}[testing]", "soupsieve<3"),
        command=(
            *("-m", "django", "test", "--settings=tests.other_suites.settings", "--noinput"),
            *("--testrunner=tests.django_suite.recorder.RecordingRunner", "--parallel=2"),
        ),
        label="wagtail",
        path=ROOT,
        environment=lambda server, database: {
            "SETTINGS": "wagtail.test.settings",
            # Wagtail's settings read these; the engine itself is put in afterwards.
            "DATABASE_ENGINE": NATIVE,
            "DATABASE_NAME": database,
            "DATABASE_USER": server.user,
            "DATABASE_PASSWORD": server.password,
            "DATABASE_HOST": server.host,
            "DATABASE_PORT": str(server.port),
        },
        leaves=("wagtail/tests/test-media", "wagtail/tests/test-static"),
    ),
}

"""Run another project's test suite on both engines, and compare test by test.

    python -m tests.other_suites drf
    python -m tests.other_suites wagtail --django 5.2 --postgresql 15
    python -m tests.other_suites wagtail wagtail.search   # only a part of it

"drf" is Django REST framework, "wagtail" the content management system. The sources, tests
included, are the source distribution from PyPI, or a copy of the folder that --source names. They
get a virtual environment with what the project asks for, and this project as it stands here; both
are kept in a cache folder, with the output of each run. The server is started for it.

The suite runs first on django.db.backends.postgresql, then on django_pooled, on one server and
with the same settings but for the ENGINE line, and the pool mode where one is asked for. Status 1:
a test failed, was skipped or is missing on django_pooled alone.

Not part of CI: on two cores that had other work as well, "drf" took a minute for each engine,
"wagtail" 35 to 40. docs/conformance.md says what was found.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from tests.django_suite.comparison import compare
from tests.django_suite.server import SETTINGS
from tests.servers.postgresql import Servers

from .suites import NATIVE, SUITES
from .workshop import SuiteError, Workshop

if TYPE_CHECKING:
    from collections.abc import Sequence

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "django_pooled")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, compare and print; return 1 where something is worse on this backend."""
    options = _parser().parse_args(arguments)
    servers = Servers()
    try:
        return _main(options, servers)
    except SuiteError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    finally:
        servers.close()


def _main(options: argparse.Namespace, servers: Servers) -> int:
    suite = SUITES[options.suite]
    version = options.version or suite.version
    workshop = Workshop(suite, options.cache / options.suite, version, options.source)
    workshop.prepare(options.python, f"Django=={options.django}.*" if options.django else "Django")
    server = servers.make(options.postgresql, settings=SETTINGS)
    server.start()
    with psycopg.connect(**server.parameters()) as connection:
        postgresql = connection.info.parameter_status("server_version")
    versions = {**workshop.versions(), "PostgreSQL": postgresql}
    _say(", ".join(f"{name} {version}" for name, version in versions.items()))
    native = workshop.take(NATIVE, server, options.labels)
    _say(f"{len(native.tests)} tests in {native.seconds:.0f} s; now with django_pooled")
    pool = {"pool": {"pool_mode": options.pool_mode}} if options.pool_mode else {}
    here = workshop.take("django_pooled", server, options.labels, pool)
    comparison = compare(here, native)
    _say(comparison.report())
    return 1 if comparison.unexplained else 0


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.other_suites",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("labels", nargs="*", help="what to run of it; by default all")
    parser.add_argument("--version", help="release of the project")
    parser.add_argument("--source", type=Path, help="take the project's sources from this folder")
    parser.add_argument("--django", metavar="X.Y", help="by default the newest that it allows")
    parser.add_argument("--postgresql", help="major version; by default the newest")
    parser.add_argument("--pool-mode", choices=("session", "transaction"), help="of django_pooled")
    parser.add_argument("--python", default=sys.executable, help="by default this one")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder; %(default)s")
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""The command line: ``python -m tests.django_suite``."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedded_postgres import all_binaries
from tests.servers.postgresql import Servers

from .comparison import compare
from .known import KNOWN, KNOWN_IN_TRANSACTION_MODE
from .outcomes import Outcomes, place
from .releases import RELEASES, Release, ReleaseError, newest_here
from .run import Run
from .server import (
    databases_for_tests,
    drop_databases,
    make_server,
    modules_without_their_extensions,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from embedded_postgres import EmbeddedServer

ENGINES = {
    "plain": ("django.db.backends.postgresql", "django_pooled"),
    "postgis": ("django.contrib.gis.db.backends.postgis", "django_pooled.postgis"),
}
BASELINES = Path(__file__).parent / "baselines"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, compare and print; return 1 where something differs without a reason on the list."""
    options = _parser().parse_args(arguments)
    servers = Servers()
    try:
        return _main(options, servers)
    except ReleaseError as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        servers.close()


def _main(options: argparse.Namespace, servers: Servers) -> int:
    series = options.django or newest_here()
    release = Release.find(series, options.python)
    # Debian's PostGIS goes with Debian's PostgreSQL, which is older than the embedded one.
    postgresql = options.postgresql or list(all_binaries())[0 if options.postgis else -1]
    native, pooled = ENGINES["postgis" if options.postgis else "plain"]
    recorded = _recorded(options, series, postgresql)

    server, made_up = make_server(servers, postgresql)
    if made_up:
        print(f"this PostgreSQL {postgresql} has these in name alone: {', '.join(made_up)}")
    run = Run(
        release,
        server,
        postgresql,
        labels=_labels(options, release, server),
        arguments=_passed_on(options),
        parallel=options.parallel,
        constraints=recorded.taken_with["packages"] if recorded else "",
    )
    if options.record:
        taken = run.take(native)
        path = _baseline(series, postgresql)
        replace(taken, taken_with={**taken.taken_with, "packages": run.packages()}).save(path)
        print(f"{len(taken.tests)} tests in {taken.seconds:.0f} s are recorded in {path}")
        return 0
    pool = {"pool": {"pool_mode": options.pool_mode}} if options.pool_mode else {}
    take = _take_keeping if options.keepdb else Run.take
    here = take(run, pooled, pool)
    excused = {**KNOWN, **(KNOWN_IN_TRANSACTION_MODE if options.pool_mode == "transaction" else {})}
    comparison = compare(here, recorded or take(run, native, {}), excused)
    failed = [place(name) for name in comparison.failed_only_here if name not in excused]
    if failed and not options.keepdb:  # by itself it would find databases of its own
        again = replace(run, labels=failed, parallel=1).take(pooled, pool)
        comparison = comparison.with_another_run(again)
    print(_headline(comparison.here, comparison.native, recorded is not None))
    print(comparison.report(), flush=True)
    return 1 if comparison.unexplained else 0


def _take_keeping(run: Run, engine: str, options: Mapping[str, Any]) -> Outcomes:
    """Run the suite twice, the second time in the databases that the first run has left."""
    run.take(engine, options)
    made = databases_for_tests(run.server)
    taken = run.take(engine, options)
    if not made or not made.items() <= databases_for_tests(run.server).items():
        raise ReleaseError(f"{engine}: the second run did not keep the databases of the first")
    print(f"{engine}: the second run kept {', '.join(sorted(made))}")
    # Some tests leave tables and rows, which the other engine's would trip over.
    drop_databases(run.server, made)
    return taken


def _baseline(series: str, postgresql: str) -> Path:
    return BASELINES / f"django-{series}-postgresql-{postgresql}.json"


def _recorded(options: argparse.Namespace, series: str, postgresql: str) -> Outcomes | None:
    path = _baseline(series, postgresql)
    is_run = options.native or options.record or options.postgis or options.keepdb
    if is_run or not path.exists():
        return None
    return Outcomes.load(path).only(options.labels)


def _labels(options: argparse.Namespace, release: Release, server: EmbeddedServer) -> list[str]:
    if options.labels:
        return list(options.labels)
    if options.postgis:
        return ["gis_tests"]
    left_out = modules_without_their_extensions(server)
    if left_out:
        print(f"left out, since the server lacks their extensions: {', '.join(left_out)}")
    return release.modules(left_out)


def _headline(here: Outcomes, native: Outcomes, is_recorded: bool) -> str:
    told = {name: value for name, value in here.taken_with.items() if name not in _NOT_TOLD}
    lines = [", ".join(f"{name} {value}" for name, value in told.items() if value)]
    if is_recorded:
        others = {
            name: value
            for name, value in native.taken_with.items()
            if name not in _NOT_TOLD and here.taken_with.get(name) != value
        }
        lines.append(
            "Django's own engine as recorded"
            + "".join(f"; there {name} {value}" for name, value in others.items() if value)
        )
    return "\n".join(lines)


_NOT_TOLD = {"engine", "packages"}


def _passed_on(options: argparse.Namespace) -> list[str]:
    passed = []
    if options.reverse:
        passed.append("--reverse")
    if options.shuffle is not None:
        passed.append(f"--shuffle={options.shuffle}")
    if options.keepdb:
        passed.append("--keepdb")
    return passed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.django_suite",
        description="Runs the test suite of a Django release on django_pooled and on Django's own "
        "engine, on one server that is started for it, and compares test by test. Status 1: "
        "something fails, is skipped or is missing only here, and is not listed in known.py.",
    )
    parser.add_argument("labels", nargs="*", help="test modules, classes or tests; by default all")
    parser.add_argument("--django", choices=RELEASES, help="by default the newest that runs here")
    parser.add_argument("--python", type=Path, help="interpreter; by default one that fits")
    parser.add_argument(
        "--postgresql",
        choices=list(all_binaries()),
        help="major version; by default the newest, with --postgis the oldest here",
    )
    parser.add_argument(
        "--postgis", action="store_true", help="the GIS engines; by default label gis_tests"
    )
    parser.add_argument(
        "--pool-mode", choices=("session", "transaction"), help="by default without any options"
    )
    parser.add_argument(
        "--native", action="store_true", help="run Django's engine even where that is recorded"
    )
    parser.add_argument(
        "--record", action="store_true", help="only run Django's engine, and record it"
    )
    parser.add_argument("--parallel", type=int, default=2, help="processes; default: %(default)s")
    parser.add_argument("--reverse", action="store_true", help="passed on to runtests.py")
    parser.add_argument(
        "--keepdb",
        action="store_true",
        help="run each engine twice, and compare what it shows in the databases of its first run",
    )
    parser.add_argument("--shuffle", type=int, metavar="SEED", help="passed on to runtests.py")
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""Tell in one line for each name what moved inside of the packages that this one builds on.

    python -m tests.canary             # compare what is installed with what was recorded
    python -m tests.canary --record    # record what is installed, once all tests pass with it
    python -m tests.canary --add       # record names that are used since, and forget others

The exit status is 1 if a name is gone, or is called in another way than before. A name whose code
has changed is told of only: whether that matters, tests find out.
"""

from __future__ import annotations

import argparse
import platform
import sys
from importlib.metadata import version

import django
from django.conf import settings

from .names import look, missing_imports
from .record import Record, compare, read, write


def main(arguments: list[str]) -> int:
    """Compare or record; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.canary", description=__doc__)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--record", action="store_true", help="record what is installed")
    how.add_argument("--add", action="store_true", help="record new names, forget unused ones")
    options = parser.parse_args(arguments)
    settings.configure()
    django.setup()
    found = look()
    before = read()
    # The names of one that cannot be imported were not asked for.
    known = sorted({*found.names, *before.names})
    versions = {distribution: version(distribution) for distribution in known}
    if options.record:
        write(Record(found.names, versions, platform.python_version()))
        return 0
    if options.add:
        write(before.with_names(found.names))
        return 0
    for distribution, installed in versions.items():
        recorded = before.versions.get(distribution, "never")
        sys.stdout.write(f"{distribution} {installed}, recorded: {recorded}\n")
    moved = compare(before.names, found)
    broken = [*moved.broken, *missing_imports(), *found.errors]
    for line in [*broken, *moved.changed]:
        sys.stdout.write(f"  {line}\n")
    if before.python.rpartition(".")[0] != platform.python_version().rpartition(".")[0]:
        sys.stdout.write(f"  (recorded on Python {before.python}: code may look changed)\n")
    if not broken and not moved.changed:
        sys.stdout.write("  nothing moved\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

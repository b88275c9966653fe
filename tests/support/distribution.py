"""The order of the tests for workers of pytest-xdist: each gets whole files, the longest first.

``--dist=worksteal`` gives each worker as many tests as the others, one after another in this order,
and later half of what another has left, from the end. So what comes first is done by one worker,
with the fixtures of a file made once, and what is left to be shared at the end are unit tests,
which take no time and need no server.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence

SECONDS = {
    "test_proof.py": 280.0,
    "example/test_command.py": 160.0,
    "package/test_package.py": 30.0,
    "package/test_typing.py": 40.0,
    "example/test_faults.py": 60.0,
    "django/test_pytest_django.py": 50.0,
    "django/test_management_commands.py": 20.0,
    "processes/test_workers.py": 40.0,
    "processes/test_startup.py": 40.0,
    "processes/test_fork.py": 20.0,
    "processes/test_deadlines.py": 20.0,
    "processes/test_gevent.py": 20.0,
    "metrics/test_page.py": 20.0,
    "browser/test_dashboard.py": 40.0,
}
"""About how long the longest files take."""

USUAL = 0.25
"""Seconds that a test of another file takes, on average."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Bring the tests into an order in which each worker has its share of the long ones."""
    if hasattr(config, "workerinput"):
        items[:] = spread(items, config.workerinput["workercount"])


def spread(items: Sequence[pytest.Item], workers: int) -> list[pytest.Item]:
    """Return the tests in an order of which each worker takes an equal part."""
    files: dict[str, list[pytest.Item]] = defaultdict(list)
    unit: list[pytest.Item] = []
    for item in items:
        if item.get_closest_marker("unit"):
            unit.append(item)
        else:
            files[item.path.as_posix()].append(item)
    shares: list[list[pytest.Item]] = [[] for _ in range(workers)]
    taken = [0.0] * workers
    for name in sorted(files, key=lambda name: (-_seconds(name, files[name]), name)):
        least = taken.index(min(taken))
        shares[least] += files[name]
        taken[least] += _seconds(name, files[name])
    ordered: list[pytest.Item] = []
    for number, share in enumerate(shares, 1):
        end = len(items) * number // workers
        room = max(0, end - len(ordered) - len(share))
        ordered += share + unit[:room]
        del unit[:room]
    return ordered + unit


def _seconds(name: str, tests: Sequence[pytest.Item]) -> float:
    known = (seconds for end, seconds in SECONDS.items() if name.endswith(end))
    return next(known, USUAL * len(tests))

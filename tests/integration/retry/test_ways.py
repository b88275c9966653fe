"""How much of this package a reader, and the processor, goes through for one call."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.programs import run_program

if TYPE_CHECKING:
    from embedded_postgres import EmbeddedServer

LONGEST = {
    "request": {"calls": 18, "files": 8, "changes": 14},
    "decorated call": {"calls": 57, "files": 15, "changes": 35},
    # With the tools that have it fail.
    "restarted call": {"calls": 161, "files": 28, "changes": 101},
}


@pytest.mark.parametrize("name", LONGEST)
def test_the_way_stays_short(name: str, server: EmbeddedServer) -> None:
    if name == "request" and sys.version_info < (3, 11):
        # So the connection is still referred to at the end, and another object takes its place.
        pytest.skip("a profiler makes the frames of Python 3.10 keep their variables")
    done = run_program([sys.executable, "-m", "tests.support.ways", server.url("postgres")])
    assert done.returncode == 0, done.stdout
    # The last line: a restart is logged before it.
    way = json.loads(done.stdout.splitlines()[-1])[name]
    assert {what: way[what] for what in way if way[what] > LONGEST[name][what]} == {}, way

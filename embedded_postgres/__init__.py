"""A PostgreSQL server of one's own, for the tests, the benchmarks and the example.

It lies beside them, so that none of the three has to import another; the wheel does not hold it.
"""

from __future__ import annotations

from .binaries import VARIABLE, all_binaries, find_binaries, major_version
from .errors import ServerError
from .ports import free_port, take_share
from .processes import process_table
from .server import EmbeddedServer

__all__ = [
    "VARIABLE",
    "EmbeddedServer",
    "ServerError",
    "all_binaries",
    "find_binaries",
    "free_port",
    "major_version",
    "process_table",
    "take_share",
]

"""A bank, and lists that are appended to, in a storm of lost COMMITs, kills and restarts.

    python benchmarks/histories.py --quick
    python benchmarks/histories.py --minutes 10 --mode xid --version 15

Sixteen threads in two processes, serializable and repeatable read in turn. Of the bank, every total
that an audit sees has to be the same, each balance has to be what the transfers make it, and of
these exactly those have to be there that were acknowledged. Of the lists, the history of all
attempts is checked by the method of Elle: see tests/proof/history.py.
"""

from __future__ import annotations

import itertools
import sys
import time

from _common import arguments
from commit_faults import report

from tests.proof.callers import supported
from tests.proof.loads import MODES
from tests.proof.runs import HISTORY_SETTINGS, Storm, bank, list_append
from tests.servers.postgresql import Servers, versions

WORKLOADS = {"bank": bank, "lists": list_append}
LEVELS = ("SERIALIZABLE", "REPEATABLE_READ")


def main() -> int:
    """Run what was chosen; returns 1 if anything was wrong."""
    parser = arguments(__doc__)
    # "idempotent" runs again what was committed, and these functions are not idempotent.
    modes = [mode for mode in MODES if mode != "idempotent"]
    parser.add_argument("--version", default=versions()[-1], choices=versions(), help="PostgreSQL")
    parser.add_argument("--mode", nargs="+", default=["xid"], choices=modes, help="commit_check")
    parser.add_argument("--only", nargs="+", default=list(WORKLOADS), choices=WORKLOADS)
    parser.add_argument("--isolation", nargs="+", default=list(LEVELS), choices=LEVELS)
    parser.add_argument(
        "--coroutines", action="store_true", help="called by tasks of an event loop"
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="of each mode, all in all")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    cases = list(itertools.product(chosen.only, chosen.isolation))
    seconds = 8.0 if chosen.quick else chosen.minutes * 60 / len(cases)
    wrong = 0
    servers = Servers()
    try:
        for mode, (workload, isolation) in itertools.product(supported(chosen.mode), cases):
            server = servers.make(chosen.version, settings=HISTORY_SETTINGS)
            server.start()
            began = time.monotonic()
            storm = Storm(mode, isolation, seconds, chosen.seed, chosen.coroutines)
            proof = WORKLOADS[workload](server, storm)
            servers.remove(server)
            title = f"{workload}, {isolation}, {mode}, PostgreSQL {chosen.version}"
            report(title, proof, time.monotonic() - began)
            wrong += len(proof.wrong)
    finally:
        servers.close()
    print(f"\n{wrong} wrong")
    return wrong > 0


if __name__ == "__main__":
    sys.exit(main())

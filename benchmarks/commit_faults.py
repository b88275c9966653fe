"""Does each decorated call take effect once or not at all, and say truthfully which?

    python benchmarks/commit_faults.py --quick
    python benchmarks/commit_faults.py --version 15 --mode xid raise --only crashes --peers

Counts, for each way to resolve a lost COMMIT and each kind of fault, what came of the calls that
were struck:

    faults      1,000 at random, at every message around COMMIT, while 8 threads make calls
    crashes     200 times the server stopped or killed, or one backend, at a chosen moment of
                COMMIT, and its transaction ids handed out to others before anybody asks
    promotions  of an asynchronous standby that had received the COMMIT, or had not

"wrong" has to be 0 everywhere: a call that returned and is not there once, one that raised and is
there, an on_commit callback that did not run, or not once. The exit code tells. The peers that
--peers adds are there to show that wrong answers would be found.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from _common import arguments

from tests.proof.callers import supported
from tests.proof.crashes import SETTINGS
from tests.proof.loads import MODES
from tests.proof.peers import PEERS
from tests.proof.runs import Proof, crash, promote, strike
from tests.servers.emulated_servers import EMULATIONS
from tests.servers.postgresql import Servers, versions

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

PARTS = ("faults", "crashes", "promotions")
QUICK = {"faults": 80, "crashes": 25, "promotions": 6}


def run(part: str, servers: Servers, mode: str, chosen: argparse.Namespace) -> Proof:
    """Run one part in one mode, on a server of its own."""
    number = QUICK[part] if chosen.quick else getattr(chosen, part)
    if part == "promotions":
        emulate = EMULATIONS[chosen.server]
        return promote(
            servers,
            chosen.version,
            mode,
            number,
            chosen.seed,
            emulate,
            coroutines=chosen.coroutines,
        )
    server = servers.make(chosen.version, settings=SETTINGS if part == "crashes" else None)
    server.start()
    EMULATIONS[chosen.server](server)
    try:
        proof = strike if part == "faults" else crash
        return proof(server, mode, number, chosen.seed, coroutines=chosen.coroutines)
    finally:
        servers.remove(server)


def report(title: str, proof: Proof, took: float) -> None:
    """Print what it has come to."""
    print(f"\n{proof.tally.table(title)}")
    counted = [*sorted(proof.outcomes.items()), *sorted(proof.notes.items())]
    print(f"all calls and more: {', '.join(f'{n} {name}' for name, n in counted)}, {took:.0f} s")
    for words in proof.wrong[:5]:
        print(f"WRONG: {words}")
    sys.stdout.flush()


def summary(proofs: Iterable[tuple[str, str, Proof]]) -> None:
    """Print a line for each part and mode."""
    print("\npart        mode           calls  struck  unknown  wrong")
    for part, mode, proof in proofs:
        print(
            f"{part:11} {mode:12} {proof.outcomes.total():7} {proof.tally.total()['calls']:7} "
            f"{proof.outcomes['unknown']:8} {len(proof.wrong):6}"
        )


def main() -> int:
    """Run what was chosen; returns 1 if any answer of ours was wrong."""
    parser = arguments(__doc__)
    parser.add_argument("--version", default=versions()[-1], choices=versions(), help="PostgreSQL")
    parser.add_argument(
        "--mode", nargs="+", default=list(MODES), choices=MODES, help="commit_check"
    )
    parser.add_argument(
        "--server", default="stock", choices=EMULATIONS, help="what the server refuses"
    )
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument(
        "--coroutines", action="store_true", help="called by tasks of an event loop"
    )
    parser.add_argument("--peers", action="store_true", help="those who answer wrong, too")
    parser.add_argument("--faults", type=int, default=1000, help="how many")
    parser.add_argument("--crashes", type=int, default=200, help="how many")
    parser.add_argument("--promotions", type=int, default=36, help="how many")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    modes = supported(chosen.mode)
    if left_out := [mode for mode in chosen.mode if mode not in modes]:
        print(f"commit_check has no {', '.join(left_out)} in this version")
    proofs = []
    servers = Servers()
    try:
        for part in chosen.only:
            for mode in [*modes, *(PEERS if chosen.peers else [])]:
                began = time.monotonic()
                proof = run(part, servers, mode, chosen)
                title = f"{part}, {mode}, PostgreSQL {chosen.version}, {chosen.server}"
                report(title, proof, time.monotonic() - began)
                proofs.append((part, mode, proof))
    finally:
        servers.close()
    summary(proofs)
    return any(proof.wrong for _, mode, proof in proofs if mode not in PEERS)


if __name__ == "__main__":
    sys.exit(main())

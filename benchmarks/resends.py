"""Is each request with an idempotency key done once, and always answered the same?

    python benchmarks/resends.py --quick
    python benchmarks/resends.py --requests 1000 --seed 7

Twelve clients each send one request after another, and each until it is answered. Meanwhile a proxy
cuts connections between clients and site, another one loses messages between site and server;
workers are killed, the server is killed and stopped, its backends are ended, and a standby is
promoted. In the end each request is sent once more, without faults.

"wrong" has to be 0: a payment that was made twice or not at all, or that was answered in two ways.
The exit code tells. --without-keys shows that wrong answers would be found.
"""

from __future__ import annotations

import sys
import time

from _common import arguments

from tests.proof.resends import resend
from tests.servers.postgresql import Servers

QUICK = 60


def main() -> int:
    """Run it; returns 1 if anything was wrong."""
    parser = arguments(__doc__)
    parser.add_argument("--requests", type=int, default=1000, help="how many")
    parser.add_argument("--without-keys", action="store_true", help="the site ignores them")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    number = QUICK if chosen.quick else chosen.requests
    servers = Servers()
    began = time.monotonic()
    try:
        header = "Another-Header" if chosen.without_keys else None
        proof = resend(servers, number, seed=chosen.seed, header=header)
    finally:
        servers.close()
    print(f"{number} requests, {time.monotonic() - began:.0f} s, {len(proof.wrong)} wrong")
    for name, count in sorted(proof.notes.items()):
        print(f"{count:8}  {name}")
    for words in proof.wrong[:5]:
        print(f"WRONG: {words}")
    return bool(proof.wrong) and not chosen.without_keys


if __name__ == "__main__":
    sys.exit(main())

"""The options of ``manage.py poolstats``, and its help."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django_pooled.poolstats.findings.thresholds import MEASURES

if TYPE_CHECKING:
    import argparse

__all__ = ["CHECK", "DESCRIPTION", "OVER", "add_arguments"]

DESCRIPTION = """\
Shows what the connection pools of all processes on this host are doing now, and how the server
counts its sessions. Processes of the same user are asked, by root those of all users. The site's
pools are only read; the command opens one connection of its own for each database.
"""

CHECK = """\
exit codes of --check:
  0  fine
  1  warning   a process that does not answer; waiters for over 0.1 seconds;
               a connect error in the last minute; connections opened again and again;
               transactions restarted again and again; less than 10 % of the server's
               connections free; a session that idles in its transaction for over a minute or
               waits for a lock for over five seconds; something that could not be read
  2  critical  waiters for over a second while all connections are in use; a database that
               does not answer; a server without a free connection
  3  unknown   no process with an open pool could be reached, or the settings or options of the
               command are wrong
Without --check the exit code is always 0. A threshold replaces the rule for the same thing.
docs/poolstats.md explains every figure.
"""

OVER = 5.0
"""Seconds that --check measures waits over, where --over does not say."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add all of them."""
    parser.add_argument("--database", metavar="ALIAS", help="Only this key of DATABASES.")
    parser.add_argument(
        "--format",
        choices=("table", "json", "prometheus"),
        default="table",
        help="How to print it; the default is a table.",
    )
    parser.add_argument(
        "--processes",
        action="store_true",
        help="Show every process; otherwise the busiest of each database where there are many.",
    )
    parser.add_argument(
        "--connections",
        action="store_true",
        help="List each connection: its age, since when and by which view or task it is in use, "
        "and the state of its session on the server.",
    )
    _add_modes(parser)
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=1.0,
        metavar="SECONDS",
        help="Time for the processes to answer, all together; the databases have at least 3 "
        "seconds. Default: 1.",
    )
    parser.add_argument(
        "--stats-dir",
        metavar="FOLDER",
        help='Look here instead of where OPTIONS["pool"]["stats_dir"] says.',
    )
    parser.add_argument(
        "--user", metavar="NAME", help="Only processes of this user, by name or number."
    )
    group = parser.add_argument_group("thresholds of --check")
    for name, measure in MEASURES.items():
        for word, level in (("warn", "warning"), ("critical", "critical")):
            group.add_argument(
                f"--{word}-{measure.option}",
                dest=f"{word}_{name}",
                type=_number,
                metavar="N",
                help=f"This or more {measure.what} is {level}.".replace("%", "%%"),
            )


def _add_modes(parser: argparse.ArgumentParser) -> None:
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--watch",
        nargs="?",
        type=_seconds,
        const=1.0,
        metavar="SECONDS",
        help="Redraw until q or Ctrl-C, every second unless told otherwise; checkouts and waits "
        "are then those since the last redraw. Press ? for the keys.",
    )
    mode.add_argument(
        "--check",
        action="store_true",
        help="Print only what is wrong; the exit code says how bad it is.",
    )
    parser.add_argument(
        "--over",
        type=_seconds,
        metavar="SECONDS",
        help="Look twice, so many seconds apart: counts and waits are then those in between, not "
        f"since the pools were opened. A threshold for waits makes it {OVER:g}.",
    )


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < 86400:
        raise ValueError
    return seconds


def _number(text: str) -> float:
    number = float(text)
    # Neither is "nan".
    if not 0 <= number < float("inf"):
        raise ValueError
    return number

"""The options of ``manage.py poolctl``, and its help."""

from __future__ import annotations

from argparse import ArgumentTypeError
from typing import TYPE_CHECKING

from django_pooled.poolstats.arguments import add_whose
from django_pooled.stats.orders import LONGEST_PAUSE, MOST_CONNECTIONS

if TYPE_CHECKING:
    import argparse

__all__ = ["DESCRIPTION", "EXIT_CODES", "add_arguments"]

DESCRIPTION = """\
Gives orders to the connection pools of this site's processes on this host, over the sockets that
poolstats reads: those of this user; for root, those of all users. Each process logs who gave them.
"""

EXIT_CODES = """\
exit codes:
  0  all of it was done, in all processes
  1  not everywhere, or not all of it yet: the lines say where
  2  nothing was done, or a switchover was given up
  3  unknown: no process could be reached, or the settings are wrong
docs/poolctl.md explains every order.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add all of them, and a parser for each order."""
    found = parser.add_subparsers(dest="order", required=True, metavar="ORDER", title="orders")

    def order(name: str, text: str) -> argparse.ArgumentParser:
        made = found.add_parser(name, help=text, description=text)
        _add_common(made)
        return made

    drain = order("drain", "Replace all connections, one at a time, as they come back.")
    _add_wait(drain, 30.0, "all are replaced; the drain goes on after that")
    pause = order("pause", "Have checkouts wait for a while, and wait until nothing is in use.")
    _add_length(pause, required=True)
    _add_wait(pause, 5.0, "nothing is in use; the pause goes on after that")
    order("resume", "End a pause, whoever has ordered it.")
    resize = order("resize", "Have other sizes, until a process ends.")
    resize.add_argument("min_size", type=_size, metavar="MIN", help="Connections kept open.")
    resize.add_argument("max_size", type=_size, metavar="MAX", help="Most connections.")
    order("reset-stats", "Have the figures of poolstats begin at 0.")
    switchover = order(
        "switchover",
        "Pause, have the server changed, wait until the address can be written, drain, resume.",
    )
    switchover.add_argument(
        "--run",
        metavar="COMMAND",
        help="What changes the server, without a shell; otherwise you do, once it says so.",
    )
    switchover.add_argument(
        "--ignore-silent",
        action="store_true",
        help="Go on though a process does not answer, or runs a version that takes no orders.",
    )
    switchover.add_argument(
        "--ignore-idle",
        action="store_true",
        help="Go on though threads keep connections, without a transaction, on which they have "
        "asked nothing for the time of --wait.",
    )
    _add_length(switchover, required=False)
    _add_wait(switchover, 5.0, "nothing is in use; else the switchover is given up")


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--database",
        action="append",
        metavar="ALIAS",
        help="Only this key of DATABASES; may be given again. Default: all pooled ones.",
    )
    parser.add_argument("--pid", type=int, help="Only this process.")
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=1.0,
        metavar="SECONDS",
        help="Time for the processes to answer, all together. Default: 1.",
    )
    add_whose(parser)


def _add_length(parser: argparse.ArgumentParser, *, required: bool) -> None:
    default = "" if required else " Default: 0.8 of the shortest timeout of the pools, at most 60."
    parser.add_argument(
        "--for",
        dest="seconds",
        type=_length,
        required=required,
        metavar="SECONDS",
        help=f"Longest that checkouts wait; then all resume by themselves.{default}",
    )
    parser.add_argument(
        "--beyond-timeout",
        action="store_true",
        help="Allow a pause in which checkouts fail, since it is longer than their timeout.",
    )


def _add_wait(parser: argparse.ArgumentParser, seconds: float, what: str) -> None:
    parser.add_argument(
        "--wait",
        type=_seconds,
        default=seconds,
        metavar="SECONDS",
        help=f"Longest to wait until {what}. Default: {seconds:g}.",
    )


def _seconds(text: str) -> float:
    return _number(text, 86400.0)


def _length(text: str) -> float:
    return _number(text, LONGEST_PAUSE)


def _number(text: str, most: float) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not 0 < number <= most:
        raise ArgumentTypeError(f"expected seconds above 0, at most {most:g}, not {text!r}")
    return number


def _size(text: str) -> int:
    if not text.isdigit() or int(text) > MOST_CONNECTIONS:
        raise ArgumentTypeError(f"expected a whole number up to {MOST_CONNECTIONS}, not {text!r}")
    return int(text)

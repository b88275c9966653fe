"""The options of ``manage.py poolstats``, and its help."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from typing import TYPE_CHECKING, Any

from django_pooled.poolstats.findings.thresholds import MEASURES
from django_pooled.stats.history import KEPT

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping

__all__ = [
    "CHECK",
    "DESCRIPTION",
    "OVER",
    "add_arguments",
    "add_whose",
    "refuse_without_effect",
    "uid_of",
]

DESCRIPTION = """\
Shows what the connection pools of this site's processes on this host are doing now, and how the
server counts its sessions. The processes of this user are asked; for root, those of all users. The
site's pools are only read; the command opens one connection of its own for each database.
"""

CHECK = """\
exit codes of --check:
  0  fine
  1  warning   a process that does not answer; waiters for over 0.1 seconds;
               a connect error in the last minute; connections opened again and again;
               transactions restarted again and again; less than 10 % of the server's
               connections free; a session that idles in its transaction for over a minute or
               waits for a lock for over five seconds; something that could not be read
  2  critical  waiters for over a second while all connections are in use; no connection in any
               process while connecting fails; with --over, as many checkouts that failed as
               succeeded; a database that does not answer; a server without a free connection
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
        "--all",
        action="store_true",
        help="Show the pools of other sites of this user too, and those of tests that run.",
    )
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
    add_whose(parser)
    group = parser.add_argument_group("thresholds of --check")
    for name, measure in MEASURES.items():
        for word, level in (("warn", "warning"), ("critical", "critical")):
            group.add_argument(
                f"--{word}-{measure.option}",
                dest=f"{word}_{name}",
                type=_number,
                metavar="N",
                help=f"{level.capitalize()} from N {measure.what}.".replace("%", "%%"),
            )


def add_whose(parser: argparse.ArgumentParser) -> None:
    """Add the options that say whose processes are meant; see `uid_of`."""
    parser.add_argument(
        "--stats-dir",
        metavar="FOLDER",
        help='Look here instead of where OPTIONS["pool"]["stats_dir"] says.',
    )
    parser.add_argument(
        "--user", metavar="NAME", help="Only processes of this user, by name or number."
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
    mode.add_argument(
        "--since",
        type=_past,
        metavar="TIME",
        help="What happened in the last 90s, 5m or so, at most 15m: what was wrong from when to "
        "when, and figures over time.",
    )
    parser.add_argument(
        "--over",
        type=_seconds,
        metavar="SECONDS",
        help="Look twice, that many seconds apart: counts and waits are then those in between, not "
        f"since the pools were opened. A threshold for waits makes it {OVER:g}.",
    )


def refuse_without_effect(options: Mapping[str, Any]) -> None:
    """Refuse options that would have no effect beside the others.

    Raises:
        ValueError: There is one; the message says why.
    """
    for name, measure in MEASURES.items():
        for word in ("warn", "critical"):
            limit, option = options[f"{word}_{name}"], f"--{word}-{measure.option}"
            if limit is not None and not options["check"]:
                raise ValueError(f"{option} needs --check: write --check {option} {limit:g}.")
    if options["since"] is not None:
        for given, why in (
            ("over", "which measures what comes"),
            ("processes", "which has a line for each time"),
            ("connections", "since past connections are not kept one by one"),
        ):
            if options[given]:
                raise ValueError(f"--{given} has no effect with --since, {why}: leave it out.")
        if options["format"] == "prometheus":
            raise ValueError(
                "--since can't be written for Prometheus, which keeps a history of its own: "
                "write --since with --format json."
            )
    in_place_of_the_table = "--check" if options["check"] else f"--format {options['format']}"
    for given in ("processes", "connections"):
        if options[given] and in_place_of_the_table != "--format table":
            raise ValueError(
                f"--{given} has no effect with {in_place_of_the_table}, which prints no table: "
                "leave out one of the two."
            )
    if options["over"] is not None and options["format"] == "prometheus":
        raise ValueError(
            "--over can't be written for Prometheus, whose counters are totals: leave it out."
        )
    if options["over"] is not None and options["watch"] is not None:
        raise ValueError(
            "--over has no effect with --watch, which shows what is new each time: "
            f"write --watch {options['over']:g}."
        )


def uid_of(user: str | None) -> int | None:
    """Return the number of the user that ``--user`` names by name or number.

    Raises:
        LookupError: There is no such user.
    """
    if user is None or user.isdigit():
        return user if user is None else int(user)
    try:
        import pwd
    except ModuleNotFoundError:
        raise LookupError("This platform has no users that --user could name.") from None
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        raise LookupError(f'There is no user "{user}".') from None


def _seconds(text: str) -> float:
    _expected(text, "seconds above 0", lambda seconds: seconds > 0)
    return _expected(text, "less than 86400 seconds", lambda seconds: seconds < 86400)


def _past(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|min)?", text)
    seconds = float(found[1]) * (60.0 if (found[2] or "s")[0] == "m" else 1.0) if found else 0.0
    if not 0 < seconds <= KEPT:
        raise ArgumentTypeError(f"expected a time such as 90s, 5m, at most 15m, not {text!r}")
    return seconds


def _number(text: str) -> float:
    # Neither is "nan".
    return _expected(text, "a number, 0 or more", lambda number: 0 <= number < float("inf"))


def _expected(text: str, words: str, test: Callable[[float], bool]) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not test(number):
        raise ArgumentTypeError(f"expected {words}, not {text!r}")
    return number

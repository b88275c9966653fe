"""manage.py poolstats: what the pools of this host's processes and their server are doing."""

from __future__ import annotations

import argparse
import getpass
import json
import os
import shutil
import sys
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError

from django_pooled.poolstats import findings, prometheus, table
from django_pooled.poolstats.findings import Level
from django_pooled.poolstats.observer import Observer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from django_pooled.poolstats.findings import Finding
    from django_pooled.poolstats.overview import Overview

DESCRIPTION = """\
Shows what the connection pools are doing: of every process on this host that runs as the same
user (for root: as any user), asked at this moment, and the server's own count of its sessions.
The site's pools are only read; the command opens one connection of its own for each database.
"""

CHECK = """\
exit codes of --check:
  0  fine
  1  warning   a process that does not answer; waiters while connections are being opened;
               a connect error in the last minute; less than 10 % of the server's connections
               free; a session that idles in its transaction for over a minute; something that
               could not be read
  2  critical  waiters while all connections are in use; a database that does not answer; a
               server without a free connection
  3  unknown   no process with an open pool could be reached
Without --check the exit code is 0 whatever is found.
"""

NOTHING = """\
No process with an open pool was found.

A process can be seen from its first use of the database on, if its DATABASES entry has
ENGINE = "django_pooled". Start the site and make one request that reads from the database.

If it runs already:
  - under another user: run this command as that user, or as root (now: user {user});
  - in another container: run it there;
  - with OPTIONS["pool"]["stats_dir"]: False turns publishing off, a folder has to be the same
    here (--stats-dir).
Looked in: {folders}
"""

CLEAR, HOME, BELOW, REST_OF_LINE = "\x1b[2J", "\x1b[H", "\x1b[J", "\x1b[K"


class Command(BaseCommand):
    help = "Shows what the connection pools of all processes, and their servers, are doing."
    # What is wrong with the settings must not hide the pools that run with them.
    requires_system_checks = ()

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> Any:
        parser = super().create_parser(prog_name, subcommand, **kwargs)
        parser.description, parser.epilog = DESCRIPTION, CHECK
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        return parser

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--database", metavar="ALIAS", help="Only this key of DATABASES.")
        parser.add_argument(
            "--format",
            choices=("table", "json", "prometheus"),
            default="table",
            help="How to print it; the default is a table.",
        )
        mode = parser.add_mutually_exclusive_group()
        mode.add_argument(
            "--watch",
            nargs="?",
            type=_seconds,
            const=1.0,
            metavar="SECONDS",
            help="Redraw until Ctrl-C, every second unless told otherwise; checkouts and waits "
            "are then those since the last redraw.",
        )
        mode.add_argument(
            "--check",
            action="store_true",
            help="Print only what is wrong, and tell it by the exit code.",
        )
        parser.add_argument(
            "--timeout",
            type=_seconds,
            default=1.0,
            metavar="SECONDS",
            help="Time that the processes have for their answer, all together; the databases "
            "have at least 3 seconds. Default: 1.",
        )
        parser.add_argument(
            "--stats-dir",
            metavar="FOLDER",
            help='Look here instead of where OPTIONS["pool"]["stats_dir"] says.',
        )
        parser.add_argument(
            "--user", metavar="NAME", help="Only processes of this user, by name or number."
        )

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            observer = Observer(
                options["database"],
                folder=options["stats_dir"],
                uid=_uid(options["user"]),
                timeout=options["timeout"],
            )
        except (ImproperlyConfigured, LookupError) as error:
            # Under --check, 1 would be taken for a warning.
            code = Level.UNKNOWN if options["check"] else 1
            raise CommandError(str(error), returncode=int(code)) from None
        level = Level.FINE
        try:
            if options["watch"] is None:
                overview = observer.take()
                found = findings.find(overview)
                level = findings.status(found)
                self.stdout.write(self._format(overview, found, options))
            else:
                self._watch(observer, options)
        except KeyboardInterrupt:
            self.stdout.write("")
        except BrokenPipeError:
            # The reader, a "head" perhaps, has had enough; the interpreter's own flush at exit
            # would complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        finally:
            observer.close()
        if options["check"] and level:
            sys.exit(level)

    def _format(
        self,
        overview: Overview,
        found: list[Finding],
        options: Mapping[str, Any],
        **layout: Any,
    ) -> str:
        if options["format"] == "json":
            values = overview.as_json() | {
                "status": findings.status(found).name.lower(),
                "findings": [
                    {"level": finding.level.name.lower(), "sentence": finding.sentence}
                    for finding in found
                ],
            }
            return json.dumps(values, indent=2 if options["watch"] is None else None)
        if options["format"] == "prometheus":
            return prometheus.render(overview)
        if options["check"]:
            return self._verdict(overview, found)
        lines = [_heading(overview), ""]
        collection = overview.collection
        if collection.askable and not overview.groups and not collection.silent:
            folders = ", ".join(collection.folders)
            lines += NOTHING.format(user=_user(), folders=folders or "no folder").splitlines()
            lines.append("")
            found = [finding for finding in found if finding.level is not Level.UNKNOWN]
        lines += table.render(overview, found, paint=self._paint, **layout)
        return "\n".join(lines)

    def _verdict(self, overview: Overview, found: list[Finding]) -> str:
        level = findings.status(found)
        sums = [group.totals for group in overview.groups]
        in_use, size = (sum(total[key] for total in sums) for key in ("in_use", "max_size"))
        waiting = sum(total["waiting"] for total in sums)
        figures = f"{in_use:.0f} of {size:.0f} connections in use, {waiting:.0f} waiting"
        lines = [f"{level.name}: {figures}"]
        lines += [finding.sentence for finding in found if finding.level]
        return "\n".join(map(table.plain, lines))

    def _watch(self, observer: Observer, options: Mapping[str, Any]) -> None:
        redraws = options["format"] == "table" and self.stdout.isatty()
        previous = None
        if redraws:
            self.stdout.write(CLEAR, ending="")
        while True:
            overview = observer.take()
            found = findings.find(overview)
            if redraws:
                self.stdout.write(self._frame(overview, found, options, previous), ending="")
            else:
                text = self._format(overview, found, options, previous=previous)
                self.stdout.write(text + "\n" * (options["format"] == "table"))
            self.stdout.flush()
            previous = overview
            time.sleep(max(0.0, overview.taken + options["watch"] - time.monotonic()))

    def _frame(
        self,
        overview: Overview,
        found: list[Finding],
        options: Mapping[str, Any],
        previous: Overview | None,
    ) -> str:
        """Draw over the last frame, leaving out the least busy processes if there are many."""
        columns, height = shutil.get_terminal_size()
        layout = {"previous": previous, "width": columns}
        lines = self._format(overview, found, options, **layout).splitlines()
        # The last line stays free: a newline there would scroll.
        if (excess := len(lines) - (height - 1)) > 0 and overview.groups:
            rows = sum(len(group.rows) for group in overview.groups)
            layout["max_rows"] = max(1, (rows - excess) // len(overview.groups) - 1)
            lines = self._format(overview, found, options, **layout).splitlines()
        # A colour has to be ended, so only what has none is cut; findings are wrapped.
        shown = (line if "\x1b" in line else line[:columns] for line in lines[: height - 1])
        return HOME + "".join(f"{line}{REST_OF_LINE}\n" for line in shown) + BELOW

    def _paint(self, level: Level, text: str) -> str:
        styles = {Level.CRITICAL: self.style.ERROR, Level.WARNING: self.style.WARNING}
        return str(styles.get(level, self.style.NOTICE)(text)) if level else text


def _heading(overview: Overview) -> str:
    many = len(overview.processes)
    silent = len(overview.collection.silent)
    moment = f"{datetime.now().astimezone():%H:%M:%S}"
    answered = f"{many} process{'' if many == 1 else 'es'} answered"
    return f"{overview.host} {moment}  {answered}{f', {silent} silent' if silent else ''}"


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < 86400:
        raise ValueError
    return seconds


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container's user often has a number only; the error differs between Pythons.
        return str(os.geteuid())


def _uid(user: str | None) -> int | None:
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

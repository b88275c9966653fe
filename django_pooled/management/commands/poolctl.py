"""manage.py poolctl: pauses, drains and resizes the pools of this site's processes on this host."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError

from django_pooled.management.operators_command import OperatorsCommand
from django_pooled.poolctl import arguments, orders
from django_pooled.poolctl.console import Console
from django_pooled.poolctl.interruption import interrupted_once
from django_pooled.poolctl.operator import Operator
from django_pooled.poolctl.switchover import Switchover
from django_pooled.poolstats.arguments import uid_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping


class Command(OperatorsCommand):
    help = "Pauses, drains and resizes the connection pools of the site's processes on this host."
    description, epilog = arguments.DESCRIPTION, arguments.EXIT_CODES

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        arguments.add_arguments(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            operator = Operator(
                options["database"] or (),
                pid=options["pid"],
                folder=options["stats_dir"],
                uid=uid_of(options["user"]),
                timeout=options["timeout"],
            )
        except (ImproperlyConfigured, LookupError) as error:
            raise CommandError(str(error), returncode=3) from None
        try:
            with interrupted_once():
                code = self._obey(operator, options)
        except orders.Refused as refused:
            raise CommandError(str(refused), returncode=refused.code) from None
        except KeyboardInterrupt:
            self.stdout.write("")
            code = 130
        if code:
            sys.exit(code)

    def _obey(self, operator: Operator, options: Mapping[str, Any]) -> int:
        console = self._console()
        if options["order"] == "drain":
            return orders.drain(operator, console, wait=options["wait"])
        if options["order"] == "pause":
            return orders.pause(
                operator,
                console,
                seconds=options["seconds"],
                wait=options["wait"],
                beyond_timeout=options["beyond_timeout"],
            )
        if options["order"] == "resume":
            return orders.resume(operator, console)
        if options["order"] == "resize":
            sizes = options["min_size"], options["max_size"]
            return orders.resize(operator, console, min_size=sizes[0], max_size=sizes[1])
        if options["order"] == "reset-stats":
            return orders.reset_stats(operator, console)
        return Switchover(
            operator,
            console,
            command=options["run"],
            seconds=options["seconds"],
            wait=options["wait"],
            beyond_timeout=options["beyond_timeout"],
            ignore_silent=options["ignore_silent"],
            ignore_idle=options["ignore_idle"],
        ).run()

    def _console(self) -> Console:
        def write(text: str) -> None:
            self.stdout.write(text, ending="")
            self.stdout.flush()

        is_terminal = self.stdout.isatty()
        width = shutil.get_terminal_size().columns if is_terminal else 100
        return Console(write, is_terminal=is_terminal, width=width)

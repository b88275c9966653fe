"""manage.py poolstats: what the pools of this host's processes and their server are doing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from importlib import import_module
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError

from django_pooled.management.operators_command import OperatorsCommand
from django_pooled.poolstats import arguments
from django_pooled.poolstats.difference import since
from django_pooled.poolstats.findings.finding import Level
from django_pooled.poolstats.findings.thresholds import Thresholds
from django_pooled.poolstats.observer import Observer
from django_pooled.poolstats.report import Report
from django_pooled.poolstats.tables import past_table
from django_pooled.poolstats.tables.overview_table import WIDTH, Layout
from django_pooled.poolstats.terminal import Ended, Terminal, writer
from django_pooled.poolstats.watch import ALL, Watch

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from django_pooled.poolstats.overview import Overview
    from django_pooled.poolstats.past import Past


class Command(OperatorsCommand):
    help = "Shows what the connection pools of all processes, and their servers, are doing."
    description, epilog = arguments.DESCRIPTION, arguments.CHECK

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        arguments.add_arguments(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            arguments.refuse_without_effect(options)
            thresholds = Thresholds.of(options)
            if options["format"] == "prometheus":
                # Tells that prometheus_client is missing, before anything is asked.
                import_module("django_pooled.poolstats.prometheus")
            observer = Observer(
                options["database"],
                folder=options["stats_dir"],
                uid=arguments.uid_of(options["user"]),
                timeout=options["timeout"],
                every_site=options["all"],
            )
        except (ImproperlyConfigured, LookupError, ValueError) as error:
            # Under --check, 1 would be taken for a warning.
            code = Level.UNKNOWN if options["check"] else 1
            raise CommandError(str(error), returncode=int(code)) from None
        level = Level.FINE
        try:
            if options["since"] is not None:
                self._write_past(observer.past(options["since"]), options)
            elif options["watch"] is None:
                report = self._report(observer, options, thresholds)
                level = report.level
                self._write(report, options)
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

    def _report(
        self, observer: Observer, options: Mapping[str, Any], thresholds: Thresholds
    ) -> Report:
        seconds = options["over"]
        if seconds is None and "wait_p99" in thresholds.limits:
            seconds = arguments.OVER
        overview = observer.take()
        if seconds is None:
            return Report(overview, thresholds=thresholds)
        time.sleep(max(0.0, overview.taken + seconds - time.monotonic()))
        overview = since(observer.take(), overview)
        return Report(overview, overview, thresholds)

    def _write(self, report: Report, options: Mapping[str, Any], *, one_line: bool = False) -> None:
        layout = self._layout(options)
        text = report.written(options["format"], layout, check=options["check"], one_line=one_line)
        self.stdout.write(text, ending="")
        self.stdout.flush()

    def _write_past(self, past: Past, options: Mapping[str, Any]) -> None:
        if options["format"] == "json":
            self.stdout.write(json.dumps(past.as_json(), indent=2))
        else:
            layout = self._layout(options)
            for line in past_table.lines(past, min(layout.width, WIDTH), layout.paint):
                self.stdout.write(line)

    def _watch(self, observer: Observer, options: Mapping[str, Any]) -> None:
        terminal = self.stdout.isatty() and os.environ.get("TERM") != "dumb"
        if terminal and options["format"] == "table":
            try:
                with Terminal(writer(self.stdout.fileno())) as screen:
                    Watch(observer, options["watch"], self._layout(options)).run(screen)
            except Ended as signalled:  # pragma: no cover - such an end writes no figures
                # The terminal is as it was: now end as the sender of the signal expects.
                signal.signal(signalled.number, signal.SIG_DFL)
                os.kill(os.getpid(), signalled.number)
        else:
            self._repeat(observer, options)

    def _repeat(self, observer: Observer, options: Mapping[str, Any]) -> None:
        """Write looks below each other, for a file or a program."""
        previous: Overview | None = None
        while True:
            overview = observer.take()
            if options["format"] == "table" and previous is not None:
                changed = since(overview, previous)
                self._write(Report(changed, changed), options, one_line=True)
            else:
                self._write(Report(overview), options, one_line=True)
            if options["format"] == "table":
                self.stdout.write("")
            previous = overview
            time.sleep(max(0.0, overview.taken + options["watch"] - time.monotonic()))

    def _layout(self, options: Mapping[str, Any]) -> Layout:
        return Layout(
            width=shutil.get_terminal_size().columns if self.stdout.isatty() else WIDTH,
            processes=ALL if options["processes"] else None,
            connections=options["connections"],
            paint=self._paint,
        )

    def _paint(self, level: Level, text: str) -> str:
        styles = {Level.CRITICAL: self.style.ERROR, Level.WARNING: self.style.WARNING}
        return str(styles.get(level, self.style.NOTICE)(text)) if level else text

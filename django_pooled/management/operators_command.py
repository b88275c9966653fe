"""What the two commands for operators have in common: a formatted help, and no system checks."""

from __future__ import annotations

import argparse
from typing import Any

from django.core.management.base import BaseCommand

__all__ = ["OperatorsCommand"]


class OperatorsCommand(BaseCommand):
    """A command whose help has paragraphs; a subclass says which."""

    description: str
    """Stands above the arguments."""
    epilog: str
    """Stands below them."""
    # What is wrong with the settings must not keep an operator from the pools that run with them.
    requires_system_checks = ()

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> Any:
        parser = super().create_parser(prog_name, subcommand, **kwargs)
        parser.description, parser.epilog = self.description, self.epilog
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        return parser

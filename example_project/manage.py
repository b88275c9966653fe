#!/usr/bin/env python
"""The command line of the voting app; ``manage.py serve`` runs all of it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# The server that serve runs comes from embedded_postgres, which lies beside this project.
sys.path.append(str(Path(__file__).resolve().parent.parent))


def main() -> None:
    """Run the management command that ``sys.argv`` names."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tabs_vs_spaces.settings")
    if sys.argv[1:2] == ["serve"]:
        # Before Django is imported, which takes long enough for a Ctrl-C to arrive.
        from tabs_vs_spaces import stopping

        stopping.listen()

    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()

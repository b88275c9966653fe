"""Makes the site's tables and its member of staff, whose password is the argument."""

from __future__ import annotations

import sys

import django
from django.core.management import call_command

if __name__ == "__main__":
    django.setup()
    call_command("migrate", verbosity=0, skip_checks=True)
    from django.contrib.auth.models import User

    User.objects.create_superuser("ada", password=sys.argv[1])

"""manage.py poolctl of the site that ``_worker.py`` is, with its arguments.

python _poolctl.py switchover
"""

from __future__ import annotations

import json
import os
import sys

if __name__ == "__main__":
    from django.conf import settings
    from django.core.management import execute_from_command_line

    settings.configure(
        DATABASES={"default": json.loads(os.environ["BENCHMARK_DATABASE"])},
        INSTALLED_APPS=["django_pooled"],
        USE_TZ=True,
    )
    execute_from_command_line(["manage.py", "poolctl", *sys.argv[1:]])

"""Settings of Django's test suite: those that the release ships for it, with another database."""

from __future__ import annotations

import json
import os

# In the folder of its tests, where runtests.py runs.
from test_sqlite import *  # type: ignore[import-not-found]  # noqa: F403

DATABASES = json.loads(os.environ["DJANGO_SUITE_DATABASES"])
TEST_RUNNER = "tests.django_suite.recorder.RecordingRunner"

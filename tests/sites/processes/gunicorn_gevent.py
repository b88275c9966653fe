"""A configuration of gunicorn that makes greenlets of threads before Django is imported.

gunicorn's own gevent worker does so in each worker, which with ``--preload`` is too late.
"""

from __future__ import annotations

from gevent import monkey  # type: ignore[import-not-found,import-untyped,unused-ignore]

monkey.patch_all()

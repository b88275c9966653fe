"""What moved inside of Django, psycopg, psycopg_pool and asgiref since the release at hand."""

from __future__ import annotations

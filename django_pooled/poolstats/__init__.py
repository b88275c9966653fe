"""The work of ``manage.py poolstats``: ask every process and server, and say what it means."""

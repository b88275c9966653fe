"""An app with the tables of ``commit_check="token"`` and of ``idempotency_key``.

retry/ alone imports its modules; projects name it in INSTALLED_APPS. How a COMMIT is judged by a
token is no part of it: see retry/commit_checks.py.
"""

"""An app with the table of ``commit_check="token"``: a row for each transaction that was committed.

retry/ alone imports its modules; projects name it in INSTALLED_APPS. How a COMMIT is judged by a
token is no part of it: see retry/commit_checks.py.
"""

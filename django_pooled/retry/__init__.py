"""``@retry_transaction``: the attempts of one call, and what became of a COMMIT without an answer.

The package's public names and testing.py import this folder. Nothing in the folders below
knows of it: the wrapper calls an attempt by backend/transaction_hooks.py. No word of requests comes
in here but through replay/.
"""

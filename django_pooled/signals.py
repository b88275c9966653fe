"""Signals, for metrics and logs of a project's own."""

from __future__ import annotations

from django.dispatch import Signal

__all__ = ["transaction_restarting"]

transaction_restarting: Signal = Signal()
"""Sent by ``retry_transaction`` before it waits and runs a transaction again.

Arguments: ``sender`` (the function), ``using`` (alias), ``attempt`` (number of the one that
failed, from 1), ``sqlstate`` (of its failure, None where there was none), ``wait`` (seconds) and
``error``. Receivers run outside the transaction; what they raise is logged.
"""

"""The process's pools: checkouts, connects, checks of liveness, resets, and what comes back.

The engine, retries, the metrics and the dashboard may import it. It knows no settings, no requests
and no database wrapper, and of Django only its errors and signals.
"""

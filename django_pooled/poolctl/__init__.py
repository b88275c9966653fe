"""Gives orders to the pools of a site's processes, and says what became of them.

Only the command imports this folder. Processes are asked as `poolstats` asks them, with the same
checks; the orders themselves are in `stats/orders.py`, and obeyed by `pool/steering.py`. Nothing is
decided here that a process could not refuse.
"""

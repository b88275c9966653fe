"""Asks the processes of this host for their reports, over their sockets, and checks the answers.

The rest of poolstats and the folders above take a `Collection` from here. No server is asked here,
and nothing of what the figures mean is known.
"""

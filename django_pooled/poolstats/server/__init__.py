"""Asks a database server for its sessions, over a connection outside of any pool.

The rest of poolstats, the dashboard and the checks take views of a server from here. No process of
the site is asked here.
"""

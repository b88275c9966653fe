"""The reading side of the pools' figures, for ``manage.py poolstats`` and for the pages.

Processes and servers are asked here, and what they answer is summed, judged and laid out. The
folders above (metrics, dashboard, checks) and the command import from here. No pool is used here:
a look must work while every connection is held, and must not change what it shows.
"""

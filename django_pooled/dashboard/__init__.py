"""An optional app: a live page of the pools, for staff.

Projects install it and include its ``urls``; no other folder imports from here. It must need no
database to answer a poll, so nothing that reads the session or the user belongs in `snapshot`.
"""

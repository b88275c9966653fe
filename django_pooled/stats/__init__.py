"""What a process knows of itself: counters, histograms, snapshots, and the socket that tells them.

The pool feeds it; `poolstats`, `metrics` and `dashboard` read it. Nothing of how a pool works may
come in; the lock of its sums is handed to it.
"""

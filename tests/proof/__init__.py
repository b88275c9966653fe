"""What proves that a decorated call takes effect once or not at all, and says truthfully which.

``worker`` is a process that makes decorated calls, ``callers`` its other end; ``faults``,
``crashes`` and ``promotions`` spoil them; ``verdict`` and ``history`` judge what came of it.
"""

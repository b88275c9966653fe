"""An overview as text for a terminal: the table of pools, connections, servers, and details.

The reports and the watch take lines from here. A figure is laid out here, and never computed.
"""

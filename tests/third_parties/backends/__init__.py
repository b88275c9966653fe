"""A database backend of somebody else's, and two that combine it with this engine."""

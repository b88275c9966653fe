"""A project with users that has included the page of the pools."""

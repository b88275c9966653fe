"""An optional app: a live page of the pools, for staff; see docs/dashboard.md."""

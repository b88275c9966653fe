"""Test suites of other projects, run on django_pooled and on Django's own engine, and compared."""

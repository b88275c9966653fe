"""Django's own test suite on this backend and on Django's, compared test by test.

``python -m tests.django_suite`` runs it; ``--help`` says what else it does.
"""

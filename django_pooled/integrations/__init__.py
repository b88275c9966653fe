"""What is known of other packages, one file for each: Celery, uWSGI, django-tenants, servers.

The pool, the backend and the checks import it. No file may import the package that it is about
unless that is loaded already, nor anything of the pools.
"""

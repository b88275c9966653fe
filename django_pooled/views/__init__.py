"""The views of a whole site, each run as ``retry_transaction`` runs one that is decorated.

urls.py and checks/ import this folder. It decides for a request how its view is run; attempts,
COMMIT and what is restored are the business of retry/ and replay/.
"""

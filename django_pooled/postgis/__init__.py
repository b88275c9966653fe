"""The database engine ``django_pooled.postgis``: Django's GIS backend over the same pool."""

"""Django's side: the database wrapper, its cursors, and what is read from settings.

Whatever works with a database may import it. It knows no policy: when a transaction is restarted,
or how a pool serves those that wait, is decided elsewhere.
"""

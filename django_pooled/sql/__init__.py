"""What SQL says: the effects of a statement by its text, and the meaning of an SQLSTATE.

All other folders may import it. No connection and no setting comes in here: it
works on text and on errors alone.
"""

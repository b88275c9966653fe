"""What may be told, and how: redaction, the fields of log records, the line that called.

All folders above `sql` may import it. It decides nothing, and knows no pool and no request.
"""

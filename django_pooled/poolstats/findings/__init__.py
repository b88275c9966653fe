"""The meaning of an overview: sentences, their levels, and thresholds.

The tables, the reports and the dashboard take findings from here. They are made of an overview
alone: nothing is asked or printed here.
"""

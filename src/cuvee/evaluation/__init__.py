"""Statistics that compare runs.

`statistics.py` has paired differences over seeds; `ranks.py` has rank correlation.
"""

"""Reports: self-contained HTML pages about runs, and the tables and sentences in them.

`summary` computes the figures of a comparison. `tables`, `figures` and `words` turn them into
tables, plots and text, and `page` writes the report. `learning` writes the diagnostics of a learned
policy.
"""

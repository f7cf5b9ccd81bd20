"""Reports: self-contained HTML pages about runs, and the tables and sentences in them.

`views` and `summary` compute the figures of a comparison. `verdict`, `tables`, `figures` and
`words` turn them into a conclusion, tables, plots and text. `panels` and `page` arrange them, and
`document` renders the file. `learning` writes the diagnostics of a learned policy.
"""

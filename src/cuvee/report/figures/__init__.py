"""The plots of the report: mixtures, losses, intervals. Each function returns a Plotly figure in the
light theme, without a title.

The page writes titles as text, so they are escaped, wrapped and available to screen readers.
"""

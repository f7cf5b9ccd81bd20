"""Recipes: whole jobs, from a configuration to stored runs and policies.

`config` defines configurations, and `build` turns them into policies and trainers. The jobs are
`train`, `compare`, `search` (with `learn` from logged runs), `recommend`, `export` and `demo`.
`progress` reports to whoever watches a job. Each job opens the store itself, and each can be
interrupted and resumed.
"""

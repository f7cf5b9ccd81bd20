"""Recipes: whole jobs, from a configuration to stored runs and policies.

`config` defines configurations, and `build` turns them into policies and trainers. The jobs are
`train`, `compare`, `search` (with `learn` from logged runs), `recommend`, `export` and `demo`.
`progress` has the observers of a job and the requests to stop it. Each job opens the store itself.
Each can be interrupted and resumed.
"""

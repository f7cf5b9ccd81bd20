"""Baselines: mixtures and schedules that need no learning and no proxy runs.

`static.py` has the static mixtures, `schedule.py` a schedule that the user gives, and
`random_walk.py` a random walk.
"""

"""Baselines: mixtures and schedules that need no learning, or hardly any.

- `static`: static mixtures, chosen before the run.
- `schedule`: a schedule that the user gives.
- `designed`: proxy runs with given schedules; the best one becomes the mixture.
- `random_walk`: a random walk.
"""

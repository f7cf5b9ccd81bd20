"""Learning from logged runs.

Read `history_learning.py` first: `learn` turns logged runs into a policy.

- `offline`: behaviour cloning and conservative Q-learning over whole runs (`episodes`).
- `off_policy`: estimates the return of a policy from logged runs.
- `merging`: augments the data with coarser domain spaces.
- `universal`: trains the policy that ships with the package, in simulated worlds.
- `coverage`: how varied a collection of trajectories is.
"""

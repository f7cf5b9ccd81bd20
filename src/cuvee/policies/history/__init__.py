"""Policies that see the whole history of a run (Data Mixing Agent, arXiv 2507.15640).

Read `policy.py` first: `HistoryPolicy` applies a learned actor. `encoder` and `features` compute
what the actor sees. `scoring_sampler` and `heuristics` generate the trajectories that it is learned
from (see `cuvee.learning`).
"""

"""Policies: what decides the next mixture of a run.

The interface is `cuvee.core.protocols.Policy`. Read `fixed.py` and `exp3.py` first: they are the
two smallest policies. Every policy that steers a real run is wrapped in a `Guard` (see `guard/`).

- `agent_policy`: an agent of `cuvee.agents` with an encoder (`encoders`) and a reward (`rewards`).
- `history/`: policies that see the whole history of a run (Data Mixing Agent).
- `feedback`: one number per timestep from the scores on two sets of questions.
- `files`: saves and loads policies.
"""

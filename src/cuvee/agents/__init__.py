"""Actor-critic agents whose actions are mixtures, that is points of the probability simplex.

Agents see arrays only. They do not know corpora, domain names or policies. Read `base.py` first: it
defines `Observation`, `Transition` and the `Agent` protocol.

- `ddpg`, `sac`, `cql`: the three agents. `replay_agent` is their common base class.
- `networks`, `actor_critic`: actors and critics that see one timestep.
- `history`: actors and critics that see the whole run so far (for `policies/history`).
- `simplex`: projections onto the simplex, and distributions over mixtures.
- `replay`, `learning`: the replay buffer, optimizer steps and target networks.
"""

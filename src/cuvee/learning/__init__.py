"""Learning from logged runs: offline RL, off-policy evaluation, the universal policy."""

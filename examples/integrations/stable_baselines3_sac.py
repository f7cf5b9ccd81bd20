"""SAC of stable-baselines3 learns to mix simulated runs: python stable_baselines3_sac.py STEPS"""

import sys

import gymnasium
import numpy as np
from stable_baselines3 import SAC

steps = int(sys.argv[1])
name = "cuvee.integrations.gymnasium:cuvee/Mixing-v0"  # the module registers it
env = gymnasium.make(name, domains=4, intervals=10, world=3)
agent = SAC("MlpPolicy", env, gamma=1.0, learning_starts=100, seed=0, device="cpu")
agent.learn(steps)


def mean_return(act, episodes: int = 10) -> float:
    """The mean decrease of the valued loss, in nats, over the same episodes for every agent."""
    total = 0.0
    for seed in range(episodes):
        observation, _ = env.reset(seed=seed)
        ended = False
        while not ended:
            observation, reward, ended, _, _ = env.step(act(observation))
            total += reward
    return total / episodes


print("uniform", round(mean_return(lambda observation: np.zeros(4, np.float32)), 4))
print("SAC", round(mean_return(lambda seen: agent.predict(seen, deterministic=True)[0]), 4))

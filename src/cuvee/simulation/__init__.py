"""Trainers without a model: simulated worlds, and dynamics models fitted to logged runs.

Read `simulator.py` first: `ScalingLaws` defines the losses of a world, and `Simulator` is a trainer
in it.

- `laws`: the two formulas, for one world or a batch of worlds.
- `continual`: random worlds of continual pre-training, with source and target domains.
- `calibration`: finds the parameters of worlds that resemble logged runs.
- `curves`: an ensemble of laws fitted to all losses and feedback of logged runs.
- `dynamics_model`: a ridge regression over logged runs, used as a trainer.
"""

"""Trainers without a model: scaling-law worlds, continual pre-training, worlds fitted to logged runs."""

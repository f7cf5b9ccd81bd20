"""Baselines: mixtures and schedules that nothing was learned for."""

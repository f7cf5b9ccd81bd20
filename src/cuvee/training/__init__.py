"""Trainers: a real language model, and a simulator with scaling-law losses."""

"""Runs several trainers in one process and batches their forward and backward passes."""

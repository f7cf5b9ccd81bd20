"""Policies that read the whole history of a run (Data Mixing Agent)."""

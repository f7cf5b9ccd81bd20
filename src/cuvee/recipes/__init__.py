"""Whole jobs: configurations, and what is built and run from them."""

"""Configurations, and what is built from them."""

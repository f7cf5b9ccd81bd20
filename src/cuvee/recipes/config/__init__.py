"""Configurations: what they may say, and how YAML becomes one."""

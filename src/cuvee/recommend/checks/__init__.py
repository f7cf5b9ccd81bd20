"""Checks of proxies: repetition like the target run's (`protocol`), and whether order matters."""

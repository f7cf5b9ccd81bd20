"""The demo: the whole path on real text, in minutes."""

"""The demo: every step of cuvee on real text, in minutes."""

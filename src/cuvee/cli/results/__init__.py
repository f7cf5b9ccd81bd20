"""Commands about finished models: evaluate and report."""

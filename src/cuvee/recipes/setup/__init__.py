"""What comes before a run: the machine, the configuration, its cost, and questions."""

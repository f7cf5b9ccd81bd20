"""Actor-critic agents on the simplex. They know vectors and torch, and nothing of corpora, domains' names or policies."""

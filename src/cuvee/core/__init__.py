"""The seven nouns and the protocols between them. Numpy and the standard library only."""

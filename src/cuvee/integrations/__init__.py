"""cuvee in other people's software."""

"""RegMix: a regression from mixtures to losses over many static proxy runs."""

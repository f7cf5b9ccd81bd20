"""RegMix: a regression from mixtures to losses over many static proxy runs.

Read `method.py` first. `runs` selects the usable runs, `fit` has the regressions and their
cross-validation, and `gaussian_process` is one of them.
"""

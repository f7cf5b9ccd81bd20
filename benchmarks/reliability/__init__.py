"""Measured tests of what cuvee promises: 1 to 15, 20 and 21 of twenty-five so far.

One module holds one family of tests. Each test is a function with `@measured` that takes whether to
run at full size, measures, plants its faults, measures again, and returns a `Result`.
"""

"""Twenty-five measured tests of what cuvee promises.

One module holds one family of tests. Each test is a function with `@measured` that takes whether to
run at full size, measures, plants its faults, measures again, and returns a `Result`.
"""

"""Draw batches from a corpus under a mixture that can change at any step. Start with `stream.py`.

`row_counts.py` computes how many rows each domain gives at each step, with `apportion.py` or
`multinomial.py`. `plan.py` maps rows to windows of tokens, with `permutation.py` (shuffling) and
`lanes.py` (order within a batch). `windows.py` reads tokens, `batch.py` holds them, and `loader.py`
connects a stream to PyTorch's data loaders.
"""

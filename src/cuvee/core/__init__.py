"""The vocabulary of cuvee: domains, mixtures, signals, trajectories, and the protocols on them.

Everything here needs only numpy and the standard library: no disk format of a corpus, no model.
Read `mixture.py`, `signals.py` and `trajectory.py` for the data types, then `protocols.py` for the
interfaces (`Policy`, `Method`, `Trainer`) that the other packages implement.
"""

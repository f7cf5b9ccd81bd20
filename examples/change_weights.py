"""Weights change in mid-run; the run is saved at 8 simulated ranks and goes on at 3. Prints the same hash twice."""

import hashlib

import numpy as np

from cuvee import Mixture, MixtureStream
from cuvee.data.stream.memory import MemoryCorpus, TokenPool

ids = np.arange(90_000)
corpus = MemoryCorpus(
    {
        name: TokenPool(name, ids[:n] % 997, ids[:n:50])
        for name, n in [("web", 90_000), ("code", 9_000)]
    }
)
changes = {
    0: Mixture.of({"web": 0.7, "code": 0.3}),
    20: Mixture.of({"web": 0.1, "code": 0.9}),
    70: Mixture.of({"web": 1.0}),
}


def ranks(world_size, state=None):
    settings = {"batch_size": 48, "sequence_length": 32, "seed": 1, "world_size": world_size}
    streams = [
        MixtureStream(corpus, changes[0], rank=rank, **settings) for rank in range(world_size)
    ]
    [stream.load_state_dict(state) for stream in streams if state]
    return streams


def run(streams, end, sha):
    for step in range(streams[0].position, end):
        [stream.set_mixture(changes[step]) for stream in streams if step in changes]
        [sha.update(next(stream).tokens_BL.tobytes()) for stream in streams]
    return sha


print(run(ranks(1), 100, hashlib.sha256()).hexdigest())
eight = ranks(8)
half_way = run(eight, 50, hashlib.sha256())
print(
    run(ranks(3, eight[5].state_dict()), 100, half_way).hexdigest()
)  # the state is global: any rank's will do

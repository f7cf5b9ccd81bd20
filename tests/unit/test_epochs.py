"""Epoch caps: one arithmetic for the stream, the guard and RegMix."""

from __future__ import annotations

import numpy as np
import pytest

from cuvee import Domain, Measured, Mixture, MixtureStream, Signals, Trajectory
from cuvee.core.epochs import EpochCaps, allowed, epochs_K, largest_shares
from cuvee.core.errors import ConfigError
from cuvee.methods.regmix.method import RegMix
from cuvee.policies.guard.epochs import EpochBudget, capped_ceilings
from cuvee.testing.stream_measures import make_corpus

NAMES = ("web", "code")


@pytest.mark.parametrize(
    ("caps", "expected"),
    [(None, [np.inf, np.inf]), (1.5, [1.5, 1.5]), ({"code": 2}, [np.inf, 2.0])],
)
def test_caps_are_for_all_domains_or_by_name(caps: EpochCaps, expected: list[float]) -> None:
    assert epochs_K(caps, NAMES).tolist() == expected


@pytest.mark.parametrize(
    ("caps", "named"),
    [
        (0.0, "epoch cap of web is 0"),
        ({"code": float("nan")}, "epoch cap of code is nan"),
        ({"law": 2.0}, "unknown domain law: choose from web, code"),
    ],
)
def test_caps_that_cannot_be_meant_are_refused(caps: EpochCaps, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        epochs_K(caps, NAMES)


def test_what_may_be_read_is_a_multiple_of_what_is_there() -> None:
    found = allowed([2.0, 0.5, np.inf, np.inf], [100, 30, 7, 0])
    assert found.tolist() == [200.0, 15.0, np.inf, np.inf]
    assert largest_shares(found, 60.0).tolist() == [1.0, 0.25, 1.0, 1.0]


def test_tokens_are_counted_by_name_while_domains_come_and_go() -> None:
    def signals(**tokens: int) -> Signals:
        domains = tuple(Domain(name, 100) for name in tokens)
        return Signals(domains, 0, 0.0, list(tokens.values()), Measured.absent(len(tokens)))

    start = Trajectory.start(signals(web=0, code=0))
    middle = start.append(Mixture.uniform(NAMES), signals(web=30, code=10))
    end = middle.append(Mixture.uniform(("law", "web")), signals(law=5, web=1))
    count = end.tokens_read()
    assert count.of(("web", "law", "new")).tolist() == [31.0, 5.0, 0.0]
    assert count.total == 46.0, "code counts, although it has been retired"


def test_stream_guard_and_regmix_read_one_cap_alike() -> None:
    """Domain `code` holds 300 tokens and may be read twice, in a run of 2,400 tokens."""
    corpus, tokens, epochs = make_corpus({"web": 6000, "code": 300}), 2400, 2.0
    expected = largest_shares(allowed(epochs, [6000, 300]), tokens)
    assert expected.tolist() == [1.0, 0.25]

    mixture = Mixture.of({"web": 0.1, "code": 0.9})
    sizes = {"batch_size": 10, "sequence_length": 10, "seed": 0}
    stream = MixtureStream(corpus, mixture, epoch_caps={"code": epochs}, **sizes)
    for _ in range(tokens // 100):
        next(stream)
    assert stream.rows_drawn()["code"] * 10 == expected[1] * tokens

    start = Trajectory.start(Signals(corpus.domains, 0, 0.0, [0, 0], Measured.absent(2)))
    forecast = EpochBudget(first_interval=tokens).forecast(start)
    caps_K = epochs_K({"code": epochs}, NAMES)
    assert capped_ceilings(caps_K, start, forecast, np.ones(2)).tolist() == expected.tolist()

    assert RegMix(tokens=tokens, epoch_cap=epochs)._ceilings(corpus.domains).tolist() == (
        expected.tolist()
    )


def test_a_trajectory_counts_its_tokens_as_it_grows() -> None:
    both = (Domain("web", 90), Domain("code", 50))
    more = (*both[1:], Domain("law", 10))

    def signals(t: int, domains: tuple[Domain, ...], tokens: list[int]) -> Signals:
        return Signals(domains, t, t / 9, np.array(tokens), Measured.absent(len(domains)))

    start = Trajectory.start(signals(0, both, [0, 0]))
    asked = start.append(Mixture.uniform(NAMES), signals(1, both, [3, 4]))
    assert asked.tokens_read().by_name() == {"web": 3, "code": 4}
    grown = asked.append(Mixture.uniform(["code", "law"]), signals(2, more, [5, 6]))
    assert grown.tokens_read().by_name() == {"web": 3, "code": 9, "law": 6}
    assert grown.tokens_read().of(["law", "web"]).tolist() == [6, 3]
    assert asked.tokens_read().by_name() == {"web": 3, "code": 4}, "the shorter one is unchanged"
    assert grown.tokens_T1().tolist() == [0, 7, 18]
    assert grown.tokens_read().total == 18

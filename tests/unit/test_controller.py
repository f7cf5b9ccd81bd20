"""`Controller` in a plain loop against `loop.run`, interrupted at every step, and with stale
rows."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cuvee.core.domain import Domain
from cuvee.core.errors import CheckpointError, ConfigError, TrainingError
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Policy
from cuvee.core.trajectory import Trajectory
from cuvee.data.corpus.corpus import Corpus
from cuvee.fleet.store.store import Store
from cuvee.integrations.rows import Rows
from cuvee.loop import run
from cuvee.methods.ac_odm import ACODM
from cuvee.methods.odm import ODM
from cuvee.policies.fixed import Fixed
from cuvee.policies.guard.alarms import AlarmSettings
from cuvee.policies.guard.guard import Guard, Limits
from cuvee.training.model import build_model
from cuvee.training.trainer import LMTrainer
from plain_host import INTERVAL, SETTINGS, SMALL, STEPS, Host, odm, stream_of
from stdlib_corpus import stdlib_corpus

AGENT = {
    "architecture": {"hidden": 8, "layers": 1, "heads": 2},
    "learning_starts": 1,
    "batch_size": 2,
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return stdlib_corpus(tmp_path_factory.mktemp("text"))


def ac_odm(corpus: Corpus) -> Policy:
    method = ACODM(mode="online", agent=AGENT)
    return Guard(method.commit(corpus, ()), Limits(floor=0.01))


def fallback(corpus: Corpus) -> Policy:
    """A guard that finds every mixture collapsed and falls back to a static one."""
    alarms = AlarmSettings(patience=2, collapse=0.2)
    shares = dict(zip(corpus.names, range(1, len(corpus.names) + 1), strict=True))
    return Guard(ODM().commit(corpus, ()), Limits(fallback=shares, cooldown=2, alarms=alarms))


POLICIES = pytest.mark.parametrize("make", [odm, ac_odm, fallback])
Make = Callable[[Corpus], Policy]


def without_validation(trajectory: Trajectory) -> Trajectory:
    signals = [
        replace(one, probes={k: v for k, v in one.probes.items() if k != "valid_loss"})
        for one in trajectory.signals
    ]
    return Trajectory(signals, trajectory.mixtures)


@POLICIES
def test_the_trajectory_is_that_of_the_loop_to_the_bit(corpus: Corpus, make: Make) -> None:
    host, policy = Host(corpus, make(corpus)), make(corpus)
    host.train()
    trainer = LMTrainer(build_model(SMALL, corpus, seed=5), stream_of(corpus), corpus, SETTINGS)
    expected = without_validation(run(trainer, policy))
    assert host.controller.trajectory == expected
    assert len({mixture.digest() for mixture in expected.mixtures}) > 2
    for own, other in zip(host.weights(), trainer.model.parameters(), strict=True):
        assert torch.equal(own, other)


def test_the_guard_falls_back_in_the_host_too(corpus: Corpus) -> None:
    class Recorded(list[Any]):
        def append(  # type: ignore[override]
            self, number: Any, mixture: Any, signals: Any, *rest: Any
        ) -> None:
            super().append((number, mixture, signals, *rest))

    rows = Recorded()
    host = Host(corpus, fallback(corpus), record=rows)
    host.train()
    assert [row[0] for row in rows] == list(range(7))
    assert "fallback" in [row[3]["guard"]["verdict"] for row in rows[1:]]
    assert sum(row[4].tokens for row in rows[1:]) == STEPS * 6 * 32


@POLICIES
@pytest.mark.parametrize("lag", [0, 2])
def test_stopped_at_every_step_of_an_interval_it_ends_the_same(
    corpus: Corpus, make: Make, lag: int
) -> None:
    whole = Host(corpus, make(corpus), lag=lag)
    saved = []
    whole.controller.begin()
    while not whole.controller.done:
        if 4 <= whole.controller.step_number <= 9:
            saved.append(whole.save())
        whole.train_step(next(whole.stream))
    for one in saved:
        host = Host(corpus, make(corpus), lag=lag)
        host.load(one)
        host.train()
        assert host.controller.trajectory == whole.controller.trajectory
        for own, other in zip(host.weights(), whole.weights(), strict=True):
            assert torch.equal(own, other)


def test_with_a_lag_decisions_come_earlier_and_take_effect_at_the_intervals_end(
    corpus: Corpus,
) -> None:
    updates: list[Any] = []
    host = Host(corpus, odm(corpus), lag=1)
    host.controller._on_update = lambda update: updates.append(
        (host.controller.step_number, update)
    )
    host.train()
    assert [(at, update.step) for at, update in updates] == [
        (0, 0), (3, 4), (7, 8), (11, 12), (15, 16), (19, 20)
    ]  # fmt: skip
    steps = [signals.step for signals in host.controller.trajectory.signals]
    assert steps == [0, 3, 7, 11, 15, 19, STEPS]
    tokens = sum(int(signals.tokens_K.sum()) for signals in host.controller.trajectory.signals)
    assert tokens == STEPS * 6 * 32


def test_the_state_passes_through_loaders_that_accept_weights_only(
    corpus: Corpus, tmp_path: Path
) -> None:
    host = Host(corpus, odm(corpus))
    host.train(6)
    blob = host.controller.state()
    torch.save({"cuvee": blob}, tmp_path / "checkpoint.pt")
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["cuvee"] == blob
    import torch.distributed.checkpoint as dcp

    dcp.state_dict_saver.save(
        {"cuvee": io.BytesIO(blob)}, checkpoint_id=tmp_path / "dcp", no_dist=True
    )
    loaded = {"cuvee": io.BytesIO()}
    dcp.state_dict_loader.load(loaded, checkpoint_id=tmp_path / "dcp", no_dist=True)
    assert loaded["cuvee"].getvalue() == blob


def test_what_is_stale_is_refused_before_the_forward_pass(corpus: Corpus) -> None:
    host, reader = Host(corpus, odm(corpus)), stream_of(corpus)
    host.train(2)
    before = host.weights()
    reader.seek(2)
    with pytest.raises(TrainingError, match=r"drawn under mixture version 0 .* version 1"):
        host.train_step(next(reader))
    host.controller._step = None
    with pytest.raises(TrainingError, match="rows of step 3 for step 2"):
        host.train_step(replace(next(copy.copy(host.stream)), step=3))
    assert all(map(torch.equal, before, host.weights()))


def test_mistakes_are_named(corpus: Corpus) -> None:
    with pytest.raises(ConfigError, match="lag is 4 and interval is 4"):
        Host(corpus, odm(corpus), lag=4)
    with pytest.raises(ConfigError, match="validated names poems"):
        Host(corpus, odm(corpus)).controller.validated({"poems": 1.0})
    host = Host(corpus, odm(corpus))
    batch = next(host.stream)
    with pytest.raises(TrainingError, match=r"call begin\(\) first"):
        host.train_step(batch)
    host = Host(corpus, odm(corpus))
    host.controller.begin()
    batch = next(host.stream)
    with (
        pytest.raises(TrainingError, match="step 0 ended without a call of losses"),
        host.controller.step(batch),
    ):
        pass
    host = Host(corpus, odm(corpus))
    host.train(5)
    with pytest.raises(CheckpointError, match="saved with interval = 4, not 5"):
        Host(corpus, odm(corpus), interval=5).controller.restore(host.controller.state())
    with pytest.raises(CheckpointError, match="does not hold a cuvee state"):
        host.controller.restore(host.controller.state()[:-9])


@pytest.mark.parametrize("lag", [0, 2])
def test_changed_domains_are_named_before_a_step_is_trained(corpus: Corpus, lag: int) -> None:
    host = Host(corpus, odm(corpus), lag=lag)
    host.train(INTERVAL)
    saved = host.save()
    host.stream.rename_domain("mail", "post")
    before = host.weights()
    with pytest.raises(TrainingError, match="but the run steers algorithms, mail, network"):
        host.train_step(next(host.stream))
    assert all(map(torch.equal, before, host.weights()))
    again = Host(corpus, odm(corpus), lag=lag)
    again.load(saved)
    again.train(INTERVAL + 1)


def test_a_policy_that_answers_otherwise_when_asked_again_is_found_out(corpus: Corpus) -> None:
    class Forgetful(Fixed):
        """Decides by something that is not in its state."""

        answers: Sequence[Mixture] = ()

        def mixture(self, so_far: Trajectory) -> Mixture:
            *self.answers, answer = self.answers
            return answer

    first = Mixture.natural(corpus.domains)
    names = [domain.name for domain in corpus.domains]
    other = Mixture.normalise(names, range(1, len(names) + 1))
    policy = Forgetful(first)
    policy.answers = [other, first]
    host = Host(corpus, policy)
    host.train(2)
    again = Forgetful(first)
    again.answers = [other]
    with pytest.raises(CheckpointError, match="state_dict does not contain everything"):
        Host(corpus, again).controller.restore(host.controller.state())


def test_validation_losses_reach_the_next_signals(corpus: Corpus) -> None:
    host = Host(corpus, odm(corpus))
    name = corpus.names[0]
    host.controller.validated({name: 3.5})
    host.train(5)
    first, second = host.controller.trajectory.signals
    assert first.probes["valid_loss"].present.tolist() == [n == name for n in corpus.names]
    assert first.probes["valid_loss"].values[0] == 3.5
    assert "valid_loss" not in second.probes


def test_domains_are_counted_by_token(corpus: Corpus) -> None:
    domain_BL = torch.tensor([[0, 0, 1, -1], [2, 1, 1, 1]])
    rows = Rows(0, 0, "", domain_BL, domain_BL, domain_BL > 0)
    np.testing.assert_array_equal(rows.tokens_K(4), [2, 4, 1, 0])
    assert isinstance(corpus.domains[0], Domain)


def test_a_controller_that_records_to_a_store_takes_requests(
    corpus: Corpus, tmp_path: Path
) -> None:
    with Store.open(tmp_path / "store.sqlite") as store:
        store.create("host", 0, {}, run_id="host")
        claim = store.claim_run("host", "worker")
        host = Host(corpus, odm(corpus), record=claim, lag=1)
        host.train(until=INTERVAL)
        store.request("host", {"set": {"mail": 0.5}}, "somebody")
        host.train(until=INTERVAL + 2)
        saved = host.save()
        host.train()
        again = Host(corpus, odm(corpus), record=claim, lag=1)
        again.load(saved)
        again.stream.seek(INTERVAL + 2)
        again.train()
        assert [request.interval for request in store.requests("host")] == [3]
        executed = [mixture["mail"] for mixture in host.controller.trajectory.mixtures]
        assert executed[-1] == pytest.approx(0.5)
        assert all(map(torch.equal, host.weights(), again.weights()))

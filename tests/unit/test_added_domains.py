"""`cuvee steer --add-domain`: a domain joins a run that trains, and every policy goes on."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cuvee.core.domain import Domain
from cuvee.core.errors import CorpusError, FingerprintMismatch, StoreError
from cuvee.core.mixture import Mixture
from cuvee.core.protocols import Policy, Probe, State
from cuvee.core.registry import METHODS
from cuvee.core.trajectory import Trajectory
from cuvee.data.corpus.corpus import Corpus
from cuvee.fleet.store.requests import check_action
from cuvee.integrations.lane_rows import LaneRows, collate, take_rows
from cuvee.policies.exp3 import Exp3
from cuvee.policies.files import load_policy
from cuvee.policies.fixed import Fixed
from cuvee.policies.guard.guard import Guard, Limits
from cuvee.policies.guard.operator import Operator, Request
from cuvee.testing.policy import ScriptedTrainer, some_domains
from plain_host import INTERVAL, STEPS, Host, odm
from registered import methods_that_steer_alone
from stdlib_corpus import corpus_with_more, stdlib_corpus

N = 12


class Asked:
    """Requests by the interval at which they take effect, as a claim gives them."""

    def __init__(self, **actions: Sequence[Mapping[str, Any]]) -> None:
        self._actions = {int(at.removeprefix("at")): given for at, given in actions.items()}

    def requests(self, number: int) -> list[Request]:
        given = self._actions.get(number, ())
        return [Request("run", n, action, "me", number) for n, action in enumerate(given, 1)]

    def append(self, *_: Any) -> None:
        """Controllers record intervals here."""


def law(share: float = 0.1, name: str = "law") -> dict[str, Any]:
    return {"add": {"name": name, "share": share, "corpus": "/c", "fingerprint": "f"}}


class Growing(ScriptedTrainer):
    """A trainer that takes domains, and whose state says which it has."""

    vocabulary = "v"

    def add_domain(self, name: str, folder: Path, fingerprint: str) -> Domain:
        if name in {domain.name for domain in self.domains}:
            raise CorpusError(f"{name} is there")
        self.domains = (*self.domains, Domain(name, 700))
        self._seen_K = np.append(self._seen_K, 0.0)
        return self.domains[-1]

    def state_dict(self) -> State:
        return {**super().state_dict(), "domains": [one.to_json() for one in self.domains]}

    def restore(self, state: State, probes: Sequence[Probe]) -> None:
        super().restore(state, probes)
        self.domains = tuple(Domain.from_json(one) for one in state["domains"])


class Play:
    """A guarded run, with a checkpoint after each interval."""

    def __init__(
        self, policy: Policy, asked: Asked, limits: Limits | None = None, takes: bool = True
    ) -> None:
        self.trainer = Growing(some_domains(), N)
        self.guard = Guard(policy, limits)
        self.guard.operator = Operator(asked, trainer=self.trainer if takes else None)
        self.so_far = Trajectory.start(self.trainer.start(policy.probes))
        self.records: list[dict[str, Any]] = []
        self.saved: list[tuple[State, State, Trajectory]] = []

    def go(self) -> Play:
        while not self.trainer.done:
            mixture = self.guard.mixture(self.so_far)
            assert mixture == self.guard.mixture(self.so_far)
            self.so_far = self.so_far.append(mixture, self.trainer.advance(mixture))
            self.records.append(dict(self.guard.learn(self.so_far)["guard"]))
            state = self.trainer.state_dict(), copy.deepcopy(self.guard.state_dict())
            self.saved.append((*state, self.so_far))
        return self

    def load(self, saved: tuple[State, State, Trajectory]) -> Play:
        self.trainer.restore(saved[0], ())
        self.guard.load_state_dict(copy.deepcopy(saved[1]))
        self.so_far = saved[2]
        return self

    def refusals(self) -> list[str]:
        entries = [record["operator"] or {"requests": []} for record in self.records]
        return [
            one["refused"] for entry in entries for one in entry["requests"] if "refused" in one
        ]


def made(name: str) -> Policy:
    if name == "universal":
        return load_policy("universal")

    class Here:
        domains = some_domains()

    return METHODS.get(name)().commit(Here(), ())


@pytest.mark.parametrize("name", [*methods_that_steer_alone(), "universal"])
def test_every_policy_steers_its_own_domains_and_resumes_exactly(name: str) -> None:
    limits = Limits(epochs=50.0)
    asked = Asked(at4=[law(0.2)])
    play = Play(made(name), asked, limits).go()
    own = [domain.name for domain in some_domains()]
    assert not play.refusals()
    for t, (record, mixture) in enumerate(zip(play.records, play.so_far.mixtures, strict=True)):
        assert record["verdict"] in ("accepted", "limited"), record
        assert record["lesson"] == "learned", record
        assert mixture.names == (tuple(own) if t < 3 else (*own, "law"))
        assert list(record["proposed"]) == own
        if t >= 3 and record["verdict"] == "accepted":
            assert mixture["law"] == pytest.approx(0.2)
            rest = np.array([mixture[one] for one in own])
            np.testing.assert_allclose(rest, 0.8 * np.array(list(record["proposed"].values())))
    for stop in range(2, 6):
        again = Play(made(name), asked, limits).load(play.saved[stop]).go()
        assert again.so_far == play.so_far, stop


class Recorder(Fixed):
    """Keeps what it sees."""

    seen: Trajectory

    def mixture(self, so_far: Trajectory) -> Mixture:
        self.seen = so_far
        return super().mixture(so_far)


def test_a_policy_sees_the_run_without_added_domains() -> None:
    shares = {"d0": 0.4, "d1": 0.3, "d2": 0.2, "d3": 0.1}
    policy = Recorder(shares)
    play = Play(policy, Asked(at3=[law(0.5)])).go()
    assert policy.seen.names == ("d0", "d1", "d2", "d3")
    assert policy.seen.signals[:3] == play.so_far.signals[:3]
    for view, whole in zip(policy.seen.signals[3:], play.so_far.signals[3:], strict=False):
        assert view.tokens_K.tolist() == whole.tokens_K[:4].tolist()
        assert view.loss.to_json() == whole.loss.to_json()[:4]
        alignment = [row[:4] for row in whole.probes["alignment"].to_json()[:4]]
        assert view.probes["alignment"].to_json() == alignment
        assert view.probes["weight_norms"] == whole.probes["weight_norms"]
    assert policy.seen.mixtures[-1].as_dict() == pytest.approx(shares)
    assert play.so_far.mixtures[-1]["law"] == 0.5


def test_requests_after_it_hold_and_free_the_share() -> None:
    asked = Asked(
        at2=[law(0.1), law(0.2, "art")],
        at4=[{"set": {"law": 0.4}}],
        at5=[{"unfreeze": True}],
        at6=[{"freeze": True}],
        at8=[law(0.1, "more")],
    )
    play = Play(Exp3(), asked).go()
    shares = [mixture.as_dict().get("law") for mixture in play.so_far.mixtures]
    assert shares[:5] == pytest.approx([None, 0.1, 0.1, 0.4, 0.4], nan_ok=True)
    assert play.so_far.mixtures[1]["art"] == pytest.approx(0.2)
    assert len({mixture.digest() for mixture in play.so_far.mixtures[4:]}) <= 2
    assert play.refusals() == ["the mixture is frozen: unfreeze it first"]
    assert play.records[1]["operator"]["added"] == {"law": 0.1, "art": 0.2}


def test_what_cannot_join_is_refused_and_the_run_goes_on() -> None:
    asked = Asked(at2=[law(0.7), law(0.1), law(0.4, "art")])
    play = Play(Exp3(), asked).go()
    there, too_much = play.refusals()
    assert there == "the run has the domain law already: change its share with --set"
    assert "would have 1.1 of the mixture" in too_much
    closed = Play(Exp3(), asked, takes=False).go()
    assert all("only `cuvee train` of a language model" in why for why in closed.refusals())
    floored = Play(Exp3(), Asked(at2=[law(0.3)]), Limits(floor=0.22)).go()
    assert "floors of 5 domains sum to 1.1" in floored.refusals()[0]
    names = ("d0", "d1", "d2", "d3")
    assert play.so_far.names == (*names, "law")
    assert closed.so_far.names == floored.so_far.names == names


def test_the_limits_apply_to_it() -> None:
    limits = Limits(max_change=0.1, ceiling=0.5, epochs=50.0)
    play = Play(Exp3(), Asked(at2=[law(0.3)]), limits).go()
    shares = [mixture.as_dict().get("law", 0.0) for mixture in play.so_far.mixtures]
    assert shares[1:4] == pytest.approx([0.1, 0.2, 0.3])
    assert play.records[1]["verdict"] == "limited"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "d0"}, "has the domain d0 already: change its share with --set d0=0.1"),
        ({"share": 1.0}, "more than 0 and less than 1"),
        ({"share": float("nan")}, "more than 0 and less than 1"),
        ({"vocabulary": "w"}, "another tokenizer"),
    ],
)
def test_a_mistake_is_named_before_anything_is_written(changes: Any, said: str) -> None:
    action = {"add": {**law()["add"], "vocabulary": "v", **changes}}
    with pytest.raises(StoreError, match=said):
        check_action(action, ["d0", "d1"], {"takes": "v"})


def test_a_run_that_takes_no_domains_says_so() -> None:
    for record in ({}, {"takes": None}):
        with pytest.raises(StoreError, match="no domain can join this run"):
            check_action(law(), ["d0", "d1"], record)
    with pytest.raises(StoreError, match="is frozen"):
        check_action(law(), ["d0"], {"takes": "v", "operator": {"order": {"freeze": True}}})


# On a model


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return stdlib_corpus(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def more(tmp_path_factory: pytest.TempPathFactory, corpus: Corpus) -> Corpus:
    return corpus_with_more(tmp_path_factory.mktemp("more"), corpus)


def tools(more: Corpus) -> Asked:
    place = {"corpus": str(more.folder), "fingerprint": more.fingerprint}
    return Asked(at3=[{"add": {"name": "tools", "share": 0.4, **place}}])


def test_a_corpus_of_another_tokenizer_or_built_again_is_no_companion(
    corpus: Corpus, more: Corpus, tmp_path: Path
) -> None:
    assert corpus.companion(more.folder, more.fingerprint).names == ("mail", "tools")
    with pytest.raises(CorpusError, match="was built again since"):
        corpus.companion(more.folder, "another")
    other = stdlib_corpus(tmp_path, vocab_size=400)
    with pytest.raises(CorpusError, match=r"another tokenizer.*--tokenizer"):
        corpus.companion(other.folder, other.fingerprint)


@pytest.mark.parametrize("policy", ["odm", "ac_odm"])
@pytest.mark.parametrize("lag", [0, 2])
def test_it_joins_a_controller_which_resumes_at_every_step(
    corpus: Corpus, more: Corpus, lag: int, policy: str
) -> None:
    def host() -> Host:
        made = odm(corpus) if policy == "odm" else METHODS.get(policy)().commit(corpus, ())
        return Host(corpus, made, lag=lag, record=tools(more))

    whole = host()
    saved = {}
    for step in range(1, STEPS + 1):
        whole.train(step)
        saved[step] = copy.deepcopy(whole.save())
    trajectory = whole.controller.trajectory
    assert trajectory.names == ("algorithms", "mail", "network", "tools")
    weights_TK = trajectory.weights_TK()
    assert (weights_TK[:2, 3] == 0).all()
    assert (weights_TK[2:, 3] > 0.1).all()
    read_K = np.sum([signals.tokens_K[3:] for signals in trajectory.signals[3:]], axis=0)
    assert read_K[0] > 0
    for step in range(2 * INTERVAL - lag - 1, 3 * INTERVAL + 1):
        again = host()
        again.load(copy.deepcopy(saved[step]))
        again.train()
        assert again.controller.trajectory == trajectory, step
        assert all(map(torch.equal, again.weights(), whole.weights()))


def test_a_state_whose_added_corpus_changed_is_refused(
    corpus: Corpus, more: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(corpus, odm(corpus), record=tools(more))
    host.train(2 * INTERVAL)
    saved = host.save()
    again = Host(corpus, odm(corpus), record=tools(more))
    monkeypatch.setattr("cuvee.data.stream.domain_state.Corpus.open", lambda folder: corpus)
    with pytest.raises(FingerprintMismatch, match="put the corpus back"):
        again.load(saved)


def test_readers_that_work_ahead_take_it(corpus: Corpus, more: Corpus) -> None:
    host = Host(corpus, odm(corpus), lag=2, record=tools(more))
    rows = LaneRows(host.stream, STEPS)
    host.controller._on_update = rows.follow
    reader = copy.copy(rows)
    reader._updates = rows._updates  # as in a worker process
    host.controller.begin()
    ahead: list[Any] = []
    for step in range(STEPS):
        while len(ahead) < min(step + 2, STEPS):
            first = 6 * len(ahead)
            ahead.append(take_rows(collate(reader.__getitems__(range(first, first + 6)))))
        batch = next(host.stream)
        assert ahead[step].log_digest == batch.log_digest
        assert (ahead[step].tokens_BL.numpy() == batch.tokens_BL).all()
        host.train_step(batch)
    assert (batch.domain_B == 3).any()

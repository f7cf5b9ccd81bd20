"""Learning from whole runs: every term by hand, agreement with `agents.cql` for runs of one
interval, the gate, resuming."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cuvee.agents.base import Observation, Transition
from cuvee.agents.cql import CQL, CQLSettings
from cuvee.agents.history import HistoryArchitecture
from cuvee.agents.learning import RewardScale
from cuvee.agents.networks import Architecture, Shape
from cuvee.agents.simplex import LogisticNormal
from cuvee.core.errors import PolicyError
from cuvee.learning.episodes import Episode, EpisodeBatch, EpisodeSet, ReturnScale
from cuvee.learning.offline import (
    OfflineLearner,
    OfflineSettings,
    cloning_loss,
    lambda_returns,
    top_quantile,
)

F, G = 3, 2
TINY = HistoryArchitecture(hidden=8, layers=1, heads=1, action=4)


def episodes(count: int = 6, T: int = 4, K: int = 3, seed: int = 0) -> list[Episode]:
    rng = np.random.default_rng(seed)
    return [
        Episode(
            rng.normal(size=(T + 1, K, F)).astype(np.float32),
            rng.normal(size=(T + 1, G)).astype(np.float32),
            rng.dirichlet(np.ones(K), size=T).astype(np.float32),
            rng.normal(size=T).astype(np.float32),
        )
        for _ in range(count)
    ]


def learner(data: list[Episode] | None = None, **settings: Any) -> OfflineLearner:
    wanted = {
        "architecture": TINY,
        "batch_size": 4,
        "draws": 2,
        "critic_warmup_steps": 0,
        **settings,
    }
    return OfflineLearner(data or episodes(), OfflineSettings(**wanted), seed=1)


def batch_of(
    rewards: list[list[float]], goes_on: list[list[float]], valid: list[list[bool]]
) -> EpisodeBatch:
    B, T = np.shape(rewards)
    action = torch.full((B, T, 2), 0.5)
    return EpisodeBatch(
        torch.zeros(B, T + 1, 2, F),
        torch.zeros(B, T + 1, G),
        action,
        torch.tensor(rewards),
        torch.tensor(goes_on),
        torch.tensor(valid),
        torch.ones(B),
    )


def test_returns_are_blended_backwards() -> None:
    """Two episodes: one of three intervals with an end, one of two whose run continued."""
    batch = batch_of(
        [[1.0, 2.0, 4.0], [1.0, 2.0, 9.0]],
        [[1, 1, 0], [1, 1, 1.0]],
        [[True] * 3, [True, True, False]],
    )
    value = torch.tensor([[10.0, 20.0, 30.0], [10.0, 20.0, 30.0]])
    found = lambda_returns(batch, value, discount=0.5, td_lambda=0.25)
    last = 4.0
    middle = 2 + 0.5 * (0.75 * 20 + 0.25 * last)
    first = 1 + 0.5 * (0.75 * 10 + 0.25 * middle)
    assert found[0].tolist() == pytest.approx([first, middle, last])
    bootstrapped = 2 + 0.5 * 20  # the record stops here, the run does not
    assert found[1, :2].tolist() == pytest.approx(
        [1 + 0.5 * (0.75 * 10 + 0.25 * bootstrapped), bootstrapped]
    )


@pytest.mark.parametrize("td_lambda", [0.0, 1.0])
def test_the_ends_of_the_blend_are_the_next_value_and_the_whole_return(td_lambda: float) -> None:
    batch = batch_of([[1.0, 2.0, 4.0]], [[1, 1, 0.0]], [[True] * 3])
    found = lambda_returns(batch, torch.tensor([[10.0, 20.0, 30.0]]), 1.0, td_lambda)[0].tolist()
    assert found == pytest.approx([7, 6, 4] if td_lambda else [11, 22, 4])


def test_shaping_takes_out_what_all_runs_gain_and_keeps_their_order() -> None:
    data = episodes(count=5)
    scale = ReturnScale.of(data, 1.0)
    shaped = [scale.shaped(episode, 4, 1.0) for episode in data]
    gains = np.array([episode.gain for episode in data])
    sums = np.array([one.sum() for one in shaped])
    np.testing.assert_allclose(sums * scale.scale, gains - gains.mean(), atol=1e-6)
    left = np.concatenate([np.cumsum(one[::-1])[::-1] for one in shaped])
    assert left.std() == pytest.approx(1.0, abs=1e-6)


def test_a_run_that_broke_off_forgoes_what_the_others_went_on_to_gain() -> None:
    whole = episodes(count=3)
    steady = [one._replace(rewards_T=np.ones(4, np.float32)) for one in whole]
    first = whole[0]
    broken = Episode(
        first.domains_TKF[:3],
        first.globals_TG[:3],
        first.actions_TK[:2],
        np.ones(2, np.float32),
        terminated=True,
    )
    scale = ReturnScale.of(steady, 1.0)
    shaped = scale.shaped(broken, 4, 1.0) * scale.scale
    assert shaped.sum() == pytest.approx(2 - 4)


def test_short_episodes_are_padded_and_each_batch_has_one_number_of_domains() -> None:
    data = [*episodes(3, T=4), *episodes(2, T=2), *episodes(4, K=5)]
    kept = EpisodeSet(data, ReturnScale.of(data, 1.0), 1.0, budget_ends=True)
    rng, seen = np.random.default_rng(0), set()
    for _ in range(20):
        batch = kept.sample(3, rng)
        seen.add(batch.action_BTK.shape[-1])
        assert batch.domains_BTKF.shape[1] == batch.action_BTK.shape[1] + 1 == 5
        lengths = batch.valid_BT.sum(1)
        assert set(lengths.tolist()) <= {2, 4}
        for length, goes_on in zip(lengths.tolist(), batch.goes_on_BT, strict=True):
            assert goes_on.tolist() == [1.0] * (length - 1) + [0.0] * (5 - length)
    assert seen == {3, 5}


def test_padding_changes_no_loss() -> None:
    """The same short episodes alone and beside a longer one give the same losses."""
    short, long = episodes(2, T=2), episodes(1, T=4, seed=5)
    agent = learner([*short, *long], states=100)
    group = agent.data._groups[3]
    padded = EpisodeBatch(*(part[:2] for part in group))
    cut = EpisodeBatch(
        *(
            part[:, : (3 if i < 2 else 2)] if part.ndim > 1 else part
            for i, part in enumerate(padded)
        )
    )
    losses = []
    for batch in (padded, cut):
        policy = agent.actor.net.policy(batch.domains_BTKF, batch.globals_BTG)
        tokens = agent.critic.net.encode(batch.domains_BTKF, batch.globals_BTG)[:, :-1]
        agent.generator.manual_seed(0)
        gap, _ = agent.conservative_loss(tokens, batch, policy, unit=1.0)
        losses.append(
            [gap.item(), cloning_loss(LogisticNormal(*(p[:, :-1] for p in policy)), batch).item()]
        )
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_cloning_is_a_divergence_from_the_best_episodes_alone() -> None:
    batch = batch_of([[0.0], [0.0]], [[0.0], [0.0]], [[True], [True]])._replace(
        action_BTK=torch.tensor([[[0.75, 0.25]], [[1.0, 0.0]]]), best_B=torch.tensor([1.0, 0.0])
    )
    policy = LogisticNormal(torch.zeros(2, 1, 2), torch.ones(2, 1, 2))
    assert cloning_loss(policy, batch).item() == pytest.approx(
        0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    )
    both = cloning_loss(
        policy, batch._replace(best_B=torch.ones(2))
    )  # a weight of zero costs nothing
    assert both.item() == pytest.approx((0.75 * np.log(1.5) + 0.25 * np.log(0.5) + np.log(2)) / 2)


def test_the_best_are_those_of_highest_return_among_runs_with_as_many_domains() -> None:
    data = [
        one._replace(rewards_T=np.full(4, gain, np.float32))
        for one, gain in zip(episodes(5), range(5), strict=True)
    ]
    data += [one._replace(rewards_T=np.full(4, -9, np.float32)) for one in episodes(1, K=4)]
    data[4] = data[4]._replace(terminated=True)
    assert top_quantile(data, 0.4) == [False, False, True, True, False, True]


class LinearTwins(nn.Module):
    """Q_j(s, α) = w_j · α, whatever the state."""

    def __init__(self, scalar: bool) -> None:
        super().__init__()
        self.scalar = scalar
        self.weights = nn.Parameter(torch.tensor([[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]]))

    def encode(self, domains: Tensor, _globals: Tensor) -> Tensor:
        return domains

    def values(self, _encoded: Tensor, action: Tensor) -> tuple[Tensor, ...]:
        found = tuple(action @ weight for weight in self.weights)
        return found if self.scalar else tuple(value[..., None] for value in found)


def test_for_runs_of_one_interval_every_loss_is_that_of_cql() -> None:
    B, K = 6, 3
    data = episodes(B, T=1, K=K)
    cql = CQL(
        Shape(K, F, G),
        CQLSettings(
            learning_starts=1,
            draws=4,
            capacity=B,
            discount=1.0,
            architecture=Architecture(hidden=16),
        ),
        seed=0,
    )
    for one in data:
        before, after = (Observation(one.domains_TKF[t], one.globals_TG[t]) for t in (0, 1))
        assert (
            cql.observe(Transition(before, one.actions_TK[0], float(one.rewards_T[0]), after, True))
            is None
        )
    flat = cql.buffer.take(np.arange(B))
    agent = learner(data, draws=4, quantile=1.0, bc_coef=0.0)
    group = agent.data._groups[K]
    batch = group._replace(reward_BT=torch.from_numpy(np.array([one.rewards_T for one in data])))
    cql.critic.net, agent.critic.net = LinearTwins(False), LinearTwins(True)
    agent.critic.target = LinearTwins(True)
    with torch.no_grad():
        here, there = (
            cql.policy(flat.domains_BKF, flat.globals_BG),
            cql.policy(flat.next_domains_BKF, flat.next_globals_BG),
        )
    assert isinstance(here, LogisticNormal)
    assert isinstance(there, LogisticNormal)
    policy = LogisticNormal(*(torch.stack(pair, 1) for pair in zip(here, there, strict=True)))
    tokens = batch.domains_BTKF[:, :-1]

    cql.generator.manual_seed(5)
    agent.generator.manual_seed(5)
    expected, report = cql.conservative_loss(flat)
    found, unit = agent.conservative_loss(tokens, batch, policy, unit=1.0)
    assert found.item() == pytest.approx(expected.item(), abs=1e-5)
    assert unit == 1.0
    assert report["conservative_gap"] == pytest.approx(found.item(), abs=1e-5)

    squared = super(CQL, cql).critic_loss(flat, RewardScale(), 0.0)
    _, ours = agent.critic_loss(batch, policy)
    assert ours["td_error"] == pytest.approx(squared.item(), abs=1e-5)

    cql.generator.manual_seed(7)
    agent.generator.manual_seed(7)
    climbed = cql.actor_loss(flat, here.sample(cql.generator), RewardScale(), 0.0)
    assert agent.actor_loss(batch, policy, torch.zeros(B, 1), 0.0, 1.0).item() == pytest.approx(
        climbed.item(), abs=1e-5
    )
    assert cloning_loss(
        LogisticNormal(*(part[:, :-1] for part in policy)), batch
    ).item() == pytest.approx(cql.cloning_loss(flat).item(), abs=1e-5)


def test_in_units_of_what_mixtures_change_the_term_does_not_depend_on_the_scale_of_values() -> None:
    agent = learner(episodes(4, T=1), draws=4)
    batch = agent.data._groups[3]
    policy = agent.actor.net.policy(batch.domains_BTKF, batch.globals_BTG)
    found = []
    for scale in (1.0, 100.0):
        agent.critic.net = LinearTwins(True)
        agent.critic.net.weights.data.mul_(scale)
        agent.generator.manual_seed(0)
        gap, unit = agent.conservative_loss(batch.domains_BTKF[:, :-1], batch, policy)
        found.append((gap.item(), unit / scale))
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_an_update_moves_the_actor_and_targets_by_tau_alone() -> None:
    agent = learner(tau=0.25)
    for _ in range(3):
        before = {
            name: value.clone() for name, value in agent.critic.target_net.state_dict().items()
        }
        actor = [parameter.clone() for parameter in agent.actor.net.parameters()]
        metrics = agent.update()
        assert metrics["actor_refused"] == metrics["critic_refused"] == 0
        assert any(
            not torch.equal(old, new)
            for old, new in zip(actor, agent.actor.net.parameters(), strict=True)
        )
        for name, old in before.items():
            expected = torch.lerp(old, agent.critic.net.state_dict()[name], 0.25)
            torch.testing.assert_close(agent.critic.target_net.state_dict()[name], expected)


def test_until_critics_have_settled_the_actor_stays() -> None:
    agent = learner(critic_warmup_steps=2)
    before = [parameter.clone() for parameter in agent.actor.net.parameters()]
    agent.update(), agent.update()
    assert all(
        torch.equal(old, new) for old, new in zip(before, agent.actor.net.parameters(), strict=True)
    )
    agent.update()
    assert any(
        not torch.equal(old, new)
        for old, new in zip(before, agent.actor.net.parameters(), strict=True)
    )


@pytest.mark.parametrize("cut", range(7))
def test_it_resumes_to_the_bit_at_any_update(cut: int) -> None:
    def step(agent: OfflineLearner, number: int) -> None:
        agent.clone() if number < 3 else agent.update()

    straight, first = learner(), learner()
    for number in range(6):
        step(straight, number)
    for number in range(cut if cut < 6 else 6):
        step(first, number)
    second = learner()
    second.load_state_dict(first.state_dict())
    for number in range(cut, 6):
        step(second, number)
    assert second.digest() == straight.digest()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            {"rewards_T": np.array([0, np.nan, 0, 0], np.float32)},
            r"run-b cannot be learned from: rewards\[1\] is nan",
        ),
        ({"globals_TG": np.full((5, G), np.inf, np.float32)}, r"run-b .*globals\[0, 0\] is inf"),
        (
            {"domains_TKF": np.full((5, 3, F), 1e30, np.float32)},
            r"run-b .*domains\[0, 0, 0\] is 1e\+30",
        ),
        ({"actions_TK": np.full((4, 3), 0.5, np.float32)}, r"run-b .*actions\[0\] sums to 1.5"),
        ({"rewards_T": np.zeros(3, np.float32)}, r"run-b .*3 intervals of 3 domains need"),
    ],
)
def test_runs_that_cannot_be_learned_from_are_refused_by_name(
    change: dict[str, Any], complaint: str
) -> None:
    data = episodes(2)
    data[1] = data[1]._replace(**change)
    with pytest.raises(PolicyError, match=complaint):
        OfflineLearner(data, OfflineSettings(architecture=TINY), names=["run-a", "run-b"])


@pytest.mark.parametrize(
    "bad",
    [
        {"td_lambda": 1.5},
        {"batch_size": 0},
        {"budget_ends": False},
        {"quantile": -0.1},
        {"cql_ratio": -1.0},
    ],
)
def test_settings_out_of_range_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(PolicyError, match=next(iter(bad))):
        OfflineSettings(**bad)
    with pytest.raises(PolicyError, match="no episode"):
        OfflineLearner([])


def test_imagined_episodes_are_learned_from_and_not_imitated() -> None:
    agent = OfflineLearner(
        episodes(5), OfflineSettings(architecture=TINY, quantile=0.2), imagined=episodes(3, seed=9)
    )
    assert agent.data._groups[3].best_B.sum() == 1
    assert len(agent.data._groups[3].best_B) == 8
    assert agent.data._groups[3].best_B[5:].sum() == 0


@pytest.mark.training
@pytest.mark.parametrize("ratio", [0.03, 0.5])
def test_the_conservative_gradient_has_the_share_that_was_asked_for(ratio: float) -> None:
    agent = learner(episodes(16), cql_ratio=ratio)
    for _ in range(80):
        metrics = agent.update()
    assert ratio / 1.5 < metrics["cql_ratio"] < 1.5 * ratio


@pytest.mark.training
def test_conservatism_helps_where_the_critics_are_led_to_overestimate() -> None:
    """More of the last domain is better in the data, which have at most 0.4 of it. Beyond it, it
    is truly worse. Whoever trusts the critics there goes far beyond."""
    rng = np.random.default_rng(0)
    data = []
    for one in episodes(48, T=2, seed=3):
        last = rng.uniform(0.05, 0.4, size=(2, 1))
        rest = rng.dirichlet(np.full(2, 20.0), size=2)
        action = np.concatenate([rest * (1 - last), last], 1).astype(np.float32)
        data.append(
            one._replace(
                domains_TKF=np.tile(np.eye(3, F, dtype=np.float32), (3, 1, 1)),
                globals_TG=np.zeros((3, G), np.float32),
                actions_TK=action,
                rewards_T=action[:, 2],
            )
        )

    def truth(ratio: float) -> float:
        agent = learner(
            data,
            cql_ratio=ratio,
            batch_size=16,
            draws=4,
            bc_coef=0.0,
            critic_warmup_steps=50,
            actor_lr=1e-2,
            critic_lr=1e-2,
        )
        for _ in range(20):
            agent.clone()
        for _ in range(200):
            agent.update()
        first = data[0]
        seen = torch.from_numpy(first.domains_TKF[None]), torch.from_numpy(first.globals_TG[None])
        with torch.no_grad():
            share = float(agent.actor.net(*seen)[0, 0].softmax(-1)[2])
        return share - 3 * max(share - 0.4, 0.0)

    assert truth(0.3) > truth(0.0) + 0.1


@pytest.mark.training
def test_it_finds_the_better_mixture_where_returns_tell_it() -> None:
    """The reward is −|α − α*|² in each interval and state. The policy must come nearer to α*
    than the best data."""
    rng, best = np.random.default_rng(0), np.array([0.6, 0.3, 0.1])
    data = []
    for one in episodes(64, T=4, seed=3):
        action = rng.dirichlet(np.full(3, 2.0), size=4).astype(np.float32)
        flat = one._replace(
            domains_TKF=np.tile(np.eye(3, F, dtype=np.float32), (5, 1, 1)),
            globals_TG=np.zeros((5, G), np.float32),
        )
        data.append(
            flat._replace(
                actions_TK=action, rewards_T=(-np.square(action - best).sum(-1)).astype(np.float32)
            )
        )
    settings = OfflineSettings(
        architecture=TINY,
        batch_size=16,
        critic_warmup_steps=100,
        actor_lr=5e-3,
        critic_lr=1e-2,
        bc_coef=0.0,
    )
    agent = OfflineLearner(data, settings, seed=0)
    seen = torch.from_numpy(data[0].domains_TKF[None]), torch.from_numpy(data[0].globals_TG[None])

    def distance() -> float:
        with torch.no_grad():
            played_TK = agent.actor.net(*seen)[0, :-1].softmax(-1).numpy()
        return float(np.abs(played_TK - best).mean())

    for _ in range(40):
        agent.clone()
    cloned = distance()
    for _ in range(500):
        metrics = agent.update()
    assert metrics["q_std"] > 0.05
    assert distance() < 0.6 * cloned

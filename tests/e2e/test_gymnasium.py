"""The environments of `cuvee.integrations.gymnasium`: Gymnasium's own check, returns, proxies."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

import cuvee.integrations.gymnasium
from cuvee.core.errors import ConfigError
from cuvee.core.mixture import Mixture
from cuvee.core.registry import TRAINERS
from cuvee.data.corpus.corpus import Corpus
from cuvee.loop import run
from cuvee.policies.fixed import Fixed
from cuvee.training.distributed import Ranks
from cuvee.training.settings import TrainerSettings
from stdlib_corpus import stdlib_corpus

pytestmark = pytest.mark.training
torch.set_num_threads(1)
SMALL = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
SETTINGS: dict[str, Any] = {
    "steps": 6,
    "interval": 2,
    "batch_size": 4,
    "sequence_length": 32,
    "validation_tokens": 256,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return stdlib_corpus(tmp_path_factory.mktemp("text"))


def make(name: str, **options: Any) -> Any:
    return gymnasium.make(f"cuvee/{name}", **options).unwrapped


def test_the_simulated_environment_passes_gymnasiums_check() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(make("Mixing-v0", domains=4, intervals=5), skip_render_check=True)


def test_the_proxy_environment_passes_gymnasiums_check(corpus: Corpus) -> None:
    env = make("MixingProxy-v0", corpus=corpus.folder, model=SMALL, settings=SETTINGS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env, skip_render_check=True)


def test_the_return_is_the_decrease_of_the_valued_loss() -> None:
    env = make("Mixing-v0", domains=4, intervals=6)
    _, info = env.reset(seed=1)
    total, ended, steps, start = 0.0, False, 0, info["loss"]
    while not ended:
        action = env.action_space.sample()
        _, reward, ended, truncated, info = env.step(action)
        total += reward
        steps += 1
        assert not truncated
    assert steps == 6
    assert total == pytest.approx(start - info["loss"])
    assert sum(info["mixture"].values()) == pytest.approx(1.0)
    expected = np.exp(3 * action.astype(float)) / np.exp(3 * action.astype(float)).sum()
    np.testing.assert_allclose(list(info["mixture"].values()), expected)


def test_a_world_stays_or_changes_with_the_episode() -> None:
    changing, staying = make("Mixing-v0"), make("Mixing-v0", world=3)
    losses = {
        name: [env.reset(seed=seed)[1]["loss"] for seed in range(3)]
        for name, env in (("changing", changing), ("staying", staying))
    }
    assert np.ptp(losses["changing"]) > 0.05
    assert np.ptp(losses["staying"]) < 0.02  # the noise of the measurement


def test_an_episode_on_a_proxy_is_a_training_run(corpus: Corpus) -> None:
    values = {name: 1.0 for name in corpus.names if name != "mail"}
    env = make(
        "MixingProxy-v0", corpus=corpus.folder, model=SMALL, settings=SETTINGS, objective=values
    )
    env.reset(seed=5)
    ended = False
    while not ended:
        _, _, ended, _, info = env.step(np.zeros(3, np.float32))
    seed = int(np.random.default_rng(np.random.SeedSequence(5)).integers(2**31))
    settings = TrainerSettings(**{**SETTINGS, "validate_every": 1, "seed": seed})
    trainer = TRAINERS.get("lm").build(SMALL, corpus, settings, Ranks())
    alone = run(trainer, Fixed(Mixture.uniform(corpus.names)))
    valid = alone.last.probes["valid_loss"].values
    others = [valid[k] for k, name in enumerate(corpus.names) if name != "mail"]
    assert info["loss"] == pytest.approx(np.mean(others))
    assert len(env.trajectory) == 3


def test_bad_settings_are_refused_before_the_first_episode(corpus: Corpus) -> None:
    with pytest.raises(ConfigError, match="interval"):
        make("MixingProxy-v0", corpus=corpus.folder, settings={"interval": 0})


def test_the_module_registers_both() -> None:
    assert cuvee.integrations.gymnasium.__name__.endswith("gymnasium")
    assert {"cuvee/Mixing-v0", "cuvee/MixingProxy-v0"} <= set(gymnasium.registry)

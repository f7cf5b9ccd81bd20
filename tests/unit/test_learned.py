"""What a report says about policies that learned: only what the run recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuvee.core.trajectory import Run
from cuvee.report.learned.diagnosis import diagnose, sentences
from cuvee.report.page import write_report
from cuvee.testing.runs import example_run


def odm(run: Run) -> list[dict[str, Any]]:
    """Metrics of ODM whose rewards are the executed weights relative to natural shares."""
    natural = {domain.name: domain.tokens for domain in run.trajectory.domains}
    return [
        {"reward": {name: weight / natural[name] for name, weight in mixture.as_dict().items()}}
        for mixture in run.trajectory.mixtures
    ]


def agent(run: Run, **record: Any) -> list[dict[str, Any]]:
    """Metrics of an agent whose critic learns, with an audit record for each interval."""
    found = []
    for t, mixture in enumerate(run.trajectory.mixtures):
        seen = {"loss": {name: -w for name, w in mixture.as_dict().items()}}
        guard = {"verdict": "accepted", "alarms": {}, "explained": {"domains": seen}, **record}
        losses = {"critic_loss": 2.0 / (1 + t), "own_value": 3.0, "natural_value": 1.0}
        found.append({"reward": 0.1, "agent": losses, "guard": guard})
    return found


def test_a_policy_that_follows_its_preference_is_described_by_it() -> None:
    run = example_run("odm")
    found = diagnose(run, odm(run))
    assert found is not None
    assert found.preference == "estimated reward"
    assert found.follows == pytest.approx(1.0, abs=0.1)
    assert found.against == ""
    assert np.isfinite(found.fall_K).all()
    said = " ".join(sentences(found))
    assert "its estimated reward: ρ = +1.00" in said or "its estimated reward: ρ = +0.9" in said
    assert "Exploration: entropy" in said
    assert "critic" not in said


def test_the_loss_is_compared_with_the_baseline_where_there_is_one() -> None:
    run, other = example_run("odm"), example_run("natural")
    found = diagnose(run, odm(run), ("natural", other))
    alone = diagnose(run, odm(run))
    theirs = diagnose(other, odm(other))
    assert found is not None
    assert alone is not None
    assert theirs is not None
    assert found.fall_K == pytest.approx(alone.fall_K - theirs.fall_K)
    assert "than under natural" in " ".join(sentences(found))


def test_an_agent_tells_what_it_saw_and_whether_its_critic_learned() -> None:
    run = example_run("ac_odm")
    found = diagnose(run, agent(run))
    assert found is not None
    assert list(found.sees) == ["loss"]
    assert found.sees["loss"] < -0.2
    said = " ".join(sentences(found))
    assert "goes most with loss" in said
    assert "it learned to tell values" in said
    assert "2 above the natural" in said


def test_a_history_agent_explains_itself_by_features_of_the_run() -> None:
    run = example_run("universal")
    features = {"explained": {"domains": 20.0, "progress": 0.5}}
    found = diagnose(run, [{**one, "guard": features} for one in agent(run)])
    assert found is not None
    assert found.sees == {}


def test_a_fallback_comes_first() -> None:
    run = example_run("ac_odm")
    metrics = agent(run, verdict="fallback", alarms={"collapse": "…"})
    found = diagnose(run, metrics)
    assert found is not None
    first = sentences(found)[0]
    assert first.startswith("Not its own alone: the guard’s fallback mixture steered 20 of 20")
    assert "collapse" in first


def test_a_fixed_mixture_has_no_diagnosis() -> None:
    run = example_run("natural")
    assert diagnose(run, [{"guard": {"verdict": "accepted"}}] * len(run.trajectory)) is None
    assert diagnose(run, []) is None


def test_the_page_has_a_part_about_each_method_that_learned(tmp_path: Path) -> None:
    runs = [example_run(name, 0) for name in ("natural", "odm", "ac_odm")]
    metrics = {runs[1].id: odm(runs[1]), runs[2].id: agent(runs[2])}
    page = write_report(runs, tmp_path / "page.html", metrics=metrics).read_text()
    assert "What the policies learned" in page
    assert page.count("Entropy and change of the mixture of") == 2
    bare = write_report(runs, tmp_path / "bare.html").read_text()
    assert "What the policies learned" not in bare


def test_the_proxy_of_doremi_is_described_by_its_excess_loss() -> None:
    run = example_run("doremi")
    found = diagnose(run, [{"excess": mixture.as_dict()} for mixture in run.trajectory.mixtures])
    assert found is not None
    assert found.preference == "excess loss"

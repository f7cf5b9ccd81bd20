"""`learn`: from the proxy runs of a search to a policy folder, with a page on what was learned. Resumes if interrupted."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cuvee.core.errors import ConfigError, StoreError
from cuvee.data.corpus.corpus import Corpus
from cuvee.learning.history_learning import Learned, LearnProgress, LearnSettings, learn
from cuvee.methods.data_mixing_agent import DataMixingAgent
from cuvee.policies.feedback import Feedback
from cuvee.policies.files import save_policy
from cuvee.recipes.diagnosis import diagnose
from cuvee.recipes.search import SearchConfig, logged_runs
from cuvee.report.learning import write_diagnostics
from cuvee.training.placement import computing_threads

_UNJUDGED = "Nobody has judged this policy, since no runs were held out. It steers all the same."


@dataclass(frozen=True)
class LearnResult:
    """Folder of the policy, and what was learned."""

    folder: Path
    page: Path
    verdict: tuple[str, ...]
    learned: Learned


def learn_from_search(
    config: SearchConfig,
    out: Path | None = None,
    observer: Callable[[LearnProgress], None] | None = None,
) -> LearnResult:
    """Learns from the runs that `cuvee search` with this configuration has done, and writes `out` (default: where the search
    would). Raises `ConfigError` if its method learns nothing so, and `StoreError` if no run is done."""
    method = agent_of(config)
    if method is None:
        raise ConfigError(
            f"{config.method.label} does not learn from logged runs: `cuvee learn` is for data_mixing_agent; use `cuvee search`"
        )
    settings, corpus = LearnSettings.of(method.agent), Corpus.open(config.corpus)
    runs = logged_runs(config)
    if not runs:
        group = config.group(corpus.fingerprint)
        raise StoreError(
            f"no run of {group!r} is done: run the proxies first with `cuvee search --runs-only`, with the same file"
        )
    folder = out or config.out / config.name / "policy"
    working = config.out / config.name / "learning"
    with computing_threads(config.threads):
        learned = learn(runs, Feedback(method.weight), settings, method.seed, working, observer)
        views = diagnose(learned, runs, Feedback(method.weight), settings.quantile)
    provenance = {
        "method": config.method.model_dump(mode="json"),
        "corpus": corpus.fingerprint,
        "seed": config.seed,
    }
    save_policy(folder, learned.policy, {**provenance, **learned.provenance})
    facts = {
        "Runs": f"{len(learned.provenance['runs'])}, {len(learned.held_out)} of them held out",
        "Proxy tokens": f"{learned.provenance['proxies']['tokens']:,}",
        "Learning": f"{learned.provenance['learning']['seconds']:.0f} s",
        "Corpus": f"fingerprint {corpus.fingerprint[:12]}",
    }
    verdict = tuple(sentence for view in views for sentence in view.verdict)
    if not views:
        facts["Judgement"] = _UNJUDGED
    page = write_diagnostics(views, folder / "diagnostics.html", config.name, facts)
    shutil.rmtree(working, ignore_errors=True)
    return LearnResult(folder, page, verdict or (_UNJUDGED,), learned)


def agent_of(config: SearchConfig) -> DataMixingAgent | None:
    """The method, if it is one that learns from the logs of its proxies."""
    method = config.method.build(config.seed)
    return method if isinstance(method, DataMixingAgent) else None

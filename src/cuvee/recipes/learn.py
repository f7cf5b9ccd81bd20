"""Learns a policy from logged runs: `cuvee learn`, and the second half of `cuvee search`."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cuvee.core.protocols import Domains, Lesson, Method, Policy, ResumableMethod
from cuvee.core.trajectory import Cost, Run
from cuvee.learning.history_learning import Learned
from cuvee.policies.files import save_policy
from cuvee.recipes.reports.diagnosis import diagnose
from cuvee.report.learning import logged_spaces, write_diagnostics
from cuvee.training.placement import computing_threads

_NOT_EVALUATED = (
    "This policy was not evaluated, because no runs were held out. It is used all the same."
)


@dataclass(frozen=True)
class LearnResult:
    """The policy folder, the page in it, and the page's conclusions as sentences."""

    folder: Path
    page: Path
    verdict: tuple[str, ...]


class Learning:
    """A method whose `commit` can resume, and whose policy is written together with a page.

    `working` is the folder in which a `ResumableMethod` keeps its state until `write` is done.
    `observer` receives the progress of such a method. `within` gives a proxy's policy what it must
    know of its run.
    """

    def __init__(
        self,
        method: Method,
        working: Path,
        threads: int = 1,
        observer: Callable[[Any], None] | None = None,
        within: Callable[[Policy], Policy] = lambda policy: policy,
    ) -> None:
        self._method = method
        self._working = working
        self._threads = threads
        self._observer = observer
        self._within = within
        self._lesson: Lesson | None = None
        self._logged: Sequence[Run] = ()
        self._missing = 0

    def propose(self, corpus: Domains, logged: Sequence[Run]) -> Sequence[Policy]:
        return [self._within(policy) for policy in self._method.propose(corpus, logged)]

    @property
    def learns_from_failed(self) -> bool:
        """Whether runs that failed are data for this method, as far as they came."""
        return bool(getattr(self._method, "learns_from_failed", False))

    def commit(self, corpus: Domains, logged: Sequence[Run]) -> Policy:
        """Learn from `logged`. Raises what the method raises if it cannot learn from them."""
        self._logged = logged
        self._missing = len(self._method.propose(corpus, logged))
        with computing_threads(self._threads):
            self._lesson = self._learn(corpus, logged)
        return self._lesson.policy

    def _learn(self, corpus: Domains, logged: Sequence[Run]) -> Lesson:
        if isinstance(self._method, ResumableMethod):
            return self._method.learn(corpus, logged, self._working, self._observer)
        before = time.perf_counter()
        policy = self._method.commit(corpus, logged)
        seconds = time.perf_counter() - before
        runs = [run.id for run in logged]
        return Lesson(policy, {"runs": runs, "learning": {"seconds": seconds}})

    def write(
        self, folder: Path, title: str, provenance: Mapping[str, Any], cost: Cost
    ) -> LearnResult:
        """Write the policy and its page. `cost` covers all proxy runs, failed ones included."""
        lesson = self._lesson
        assert lesson is not None, "commit comes first"
        said = {**lesson.provenance, **provenance, "proxies": asdict(cost)}
        save_policy(folder, lesson.policy, said)
        with computing_threads(self._threads):
            views = diagnose(lesson, self._logged) if isinstance(lesson, Learned) else []
        verdict = tuple(sentence for view in views for sentence in view.verdict)
        page = write_diagnostics(
            views,
            folder / "diagnostics.html",
            title,
            self._facts(said),
            logged_spaces([run.trajectory for run in self._logged]),
            verdict=_summary(lesson) if not views else (),
        )
        shutil.rmtree(self._working, ignore_errors=True)
        return LearnResult(folder, page, verdict or _summary(lesson))

    def _facts(self, provenance: Mapping[str, Any]) -> dict[str, str]:
        held_out = self._lesson.held_out if isinstance(self._lesson, Learned) else ()
        runs = str(len(provenance["runs"]))
        if held_out:
            runs += f", {len(held_out)} of them held out"
        if self._missing:
            runs += f", {self._missing} missing"
        return {
            "Runs": runs,
            "Proxy tokens": f"{provenance['proxies']['tokens']:,}",
            "Learning": f"{provenance['learning']['seconds']:.0f} s",
            "Corpus": f"fingerprint {provenance['corpus'][:12]}",
        }


def _summary(lesson: Lesson) -> tuple[str, ...]:
    """Return the policy's own evidence in one sentence, if it has any."""
    if isinstance(lesson, Learned):
        return (_NOT_EVALUATED,)
    evidence = getattr(lesson.policy, "evidence", None) or {}
    return (evidence["summary"],) if "summary" in evidence else ()

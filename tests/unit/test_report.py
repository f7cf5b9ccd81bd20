"""The report: the figures in its tables, the text above them, and that no text in it becomes
markup."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuvee.core.errors import ConfigError
from cuvee.core.signals import Measured
from cuvee.core.trajectory import Cost, Run, Trajectory
from cuvee.report.page import write_report
from cuvee.report.summary import method_label, summarise
from cuvee.report.tables import domain_table, final_table, paired_table, run_table
from cuvee.report.views import score
from cuvee.report.words import amount, duration, headline, number, signed
from cuvee.testing.runs import example_domains, example_run

METHODS = ("uniform", "natural", "odm")


def compared(seeds: int) -> list[Run]:
    return [example_run(method, seed) for seed in range(seeds) for method in METHODS]


def shifted(run: Run, by: float) -> Run:
    """The same run with every validation loss moved."""
    signals = [
        replace(s, probes={name: Measured.all(m.values + by) for name, m in s.probes.items()})
        for s in run.trajectory.signals
    ]
    return replace(run, trajectory=Trajectory(signals, run.trajectory.mixtures))


def test_scores_weigh_domains_alike_and_roles_apart() -> None:
    domains = example_domains(sources=3, targets=1)
    scores = score(
        domains, np.array([1.0, 2.0, 3.0, 6.0]), {domain.name: 4.0 for domain in domains}
    )
    assert (scores.mean, scores.source, scores.target, scores.balance) == (3.0, 2.0, 6.0, 4.0)
    assert (scores.worst, scores.worst_domain) == (6.0, "target-0")
    assert scores.perplexity == pytest.approx(math.e**3)
    assert scores.bits_per_byte == pytest.approx(3.0 / math.log(2) / 4)


def test_without_roles_the_mean_is_the_headline() -> None:
    scores = score(example_domains(sources=2, targets=0), np.array([1.0, 3.0]), {})
    assert scores.headline == scores.mean == 2.0
    assert scores.source is scores.target is scores.balance is scores.bits_per_byte is None


def test_final_table_holds_the_last_validation_and_the_cost() -> None:
    run = example_run("natural")
    table = final_table(summarise([run]))
    losses = run.trajectory.last.probes["valid_loss"].values
    cells = dict(zip(table.columns, table.rows[0].cells, strict=True))
    assert cells["Mean"].text == f"{losses.mean():.3f}"
    assert cells["Source"].text == f"{losses[:6].mean():.3f}"
    assert cells["Target"].text == f"{losses[6:].mean():.3f}"
    assert cells["Perplexity"].text == f"{math.exp(losses.mean()):.2f}"
    assert cells["Worst domain"].note == run.trajectory.names[losses.argmax()]
    assert cells["Tokens"].text == amount(run.cost.tokens)
    assert not any(cell.lowest for cell in table.rows[0].cells), "a single run beats nobody"


def test_paired_differences_are_taken_by_seed() -> None:
    base = [example_run("natural", seed) for seed in range(5)]
    better = [
        replace(shifted(run, -0.25), id=run.id + "b", config={"method": "better"}) for run in base
    ]
    table = paired_table(summarise(base + better[::-1]))
    assert table is not None
    assert [cell.text for cell in table.rows[0].cells[:5]] == ["better", *["−0.250"] * 4]
    assert table.rows[0].cells[1].note == "−0.250 to −0.250", "the seeds cancel exactly"
    assert table.rows[0].cells[1].shade < 0


def test_tokens_to_the_baselines_end() -> None:
    base, slow = example_run("natural"), example_run("odm", tokens=5_000)
    table = paired_table(
        summarise(
            [
                base,
                shifted(slow, 1.0),
                replace(shifted(base, -0.5), id="x", config={"method": "fast"}),
            ]
        )
    )
    assert table is not None
    assert table.rows[0].cells[-1].text == "never reached"
    share = re.fullmatch(r"(\d+)% of its tokens", table.rows[1].cells[-1].text)
    assert share
    assert int(share[1]) < 100


def steered(run: Run, label: str, **config: Any) -> Run:
    """The same run under a saved policy."""
    bare = {key: value for key, value in run.config.items() if key != "method"}
    return replace(
        run,
        id=f"{run.id}-{label}",
        config={**bare, "policy": label, "policy_sha256": "a", **config},
    )


def test_proxies_count_in_the_cost_and_pay_from_some_size_on() -> None:
    base = [example_run("natural", seed) for seed in range(2)]
    proxies = Cost(1_000_000, 4.0 * base[0].cost.flops, 60.0)
    learned = [steered(shifted(run, -0.5), "learned", proxies=asdict(proxies)) for run in base]
    stranger = [steered(run, "stranger") for run in base]
    worse = [steered(shifted(run, 0.5), "worse", proxies=asdict(proxies)) for run in base]
    summary = summarise([*base, *learned, *stranger, *worse])
    final, table = final_table(summary), paired_table(summary)
    rows = {row.head: dict(zip(final.columns, row.cells, strict=True)) for row in final.rows}
    mean = sum(run.cost.flops for run in base) / 2
    assert rows["learned"]["FLOPs"].text == amount(mean + proxies.flops)
    assert rows["learned"]["Tokens"].note == "1 M proxies"
    assert rows["natural"]["FLOPs"].text == amount(mean)
    assert {cell.note for cell in list(rows["natural"].values())[-3:]} == {""}
    assert rows["stranger"]["Tokens"].note == "its policy’s unknown"
    assert table is not None
    assert table.columns[-1] == "Proxies pay from"
    ends = {row.head: row.cells[-1] for row in table.rows}
    needed = int(re.findall(r"\d+", table.rows[0].cells[-2].text)[0]) / 100
    factor = float(ends["learned"].note.split()[0])
    assert factor == pytest.approx(proxies.flops / mean / (1 - needed), rel=0.02)
    assert ends["learned"].text.endswith("FLOPs")
    assert (ends["worse"].text, ends["stranger"].text) == ("never", "–")


def test_without_proxies_nothing_is_said_of_them() -> None:
    table = paired_table(summarise(compared(2)))
    assert table is not None
    assert "Proxies pay from" not in table.columns


def test_policies_of_other_content_and_questions_are_no_other_settings(tmp_path: Path) -> None:
    one, other = (
        steered(example_run("natural"), label, proxies=asdict(Cost(1)))
        for label in ("one", "other")
    )
    asked = replace(other, config={**other.config, "evaluation": {"general": ["g.jsonl"]}})
    assert "differ in more than" not in write_report([one, asked], tmp_path / "r.html").read_text()


def test_one_seed_makes_no_claim() -> None:
    summary = summarise(compared(1))
    words = " ".join(headline(summary))
    assert "an observation, not a result" in words
    assert "interval" not in words
    table = paired_table(summary)
    assert table is not None
    assert all(cell.shade == 0 for row in table.rows for cell in row.cells), (
        "nothing is called better"
    )
    assert [cell.note for cell in table.rows[0].cells[:2]] == [
        "one seed decides nothing", "one seed: no interval"
    ]  # fmt: skip


@pytest.mark.parametrize(("seeds", "hint"), [(3, True), (5, False)])
def test_few_seeds_are_called_a_hint(seeds: int, hint: bool) -> None:
    base = [example_run("natural", seed) for seed in range(seeds)]
    better = [
        replace(shifted(run, -0.25), id=run.id + "b", config={"method": "better"}) for run in base
    ]
    words = " ".join(headline(summarise(base + better)))
    assert "better ended with the lowest" in words
    assert "−0.250 against the baseline natural" in words
    assert ("hint" in words) == hint


def test_an_interval_over_zero_is_no_difference() -> None:
    base = [example_run("natural", seed) for seed in range(5)]
    same = [
        replace(shifted(r, 0.02 * (-1) ** r.seed - 0.001), id=r.id + "b", config={"method": "same"})
        for r in base
    ]
    assert "the two may be equally good" in " ".join(headline(summarise(base + same)))


def test_unfinished_and_failed_runs_are_shown_and_count_in_nothing(tmp_path: Path) -> None:
    done, failed, waiting = (
        example_run("natural"),
        example_run("odm", done=7),
        example_run("uniform", done=0),
    )
    full_but_failed = example_run("full")
    statuses = {
        failed.id: "failed: the loss is not finite",
        full_but_failed.id: "failed: out of disk",
    }
    summary = summarise([done, failed, waiting, full_but_failed], statuses=statuses)
    assert paired_table(summary) is None
    assert "nothing is compared yet" in " ".join(headline(summary))
    states = [row.cells[2].text for row in run_table(summary).rows]
    assert states[0] == "finished"
    assert "failed: the loss is not finite, 35% of the budget" in states
    assert "not finished, 0% of the budget" in states
    assert "failed: out of disk, 100% of the budget" in states
    assert all(cell.shade == 0 for row in domain_table(summary).rows for cell in row.cells)
    page = write_report(
        [done, failed, waiting, full_but_failed], tmp_path / "r.html", statuses=statuses
    ).read_text()
    assert "3 of 4 runs did not finish and are not part of any comparison" in page


def test_a_run_without_any_validation_is_shown(tmp_path: Path) -> None:
    run = example_run("natural")
    bare = replace(
        run,
        trajectory=Trajectory(
            [replace(s, probes={}) for s in run.trajectory.signals], run.trajectory.mixtures
        ),
    )
    page = write_report([bare], tmp_path / "r.html").read_text()
    assert "Nothing was validated yet" in page


def test_unequal_budgets_are_pointed_out(tmp_path: Path) -> None:
    page = write_report(
        [example_run("natural"), example_run("odm", tokens=10_000)], tmp_path / "r.html"
    ).read_text()
    assert "did not train on equally many tokens" in page


def test_settings_that_differ_are_pointed_out(tmp_path: Path) -> None:
    runs = [
        example_run("natural", config={"train": {"steps": 9}}),
        example_run("odm", config={"train": {"steps": 8}}),
    ]
    assert (
        "differ in more than method and seed (train)"
        in write_report(runs, tmp_path / "a.html").read_text()
    )
    assert "differ in more than" not in write_report(compared(2), tmp_path / "b.html").read_text()


def test_what_a_report_refuses() -> None:
    with pytest.raises(ConfigError, match="at least one run"):
        summarise([])
    with pytest.raises(ConfigError, match="'pile' is not one of the methods"):
        summarise(compared(1), baseline="pile")
    other = example_run(
        "odm", domains=[replace(domain, name=f"x-{domain.name}") for domain in example_domains()]
    )
    with pytest.raises(ConfigError, match="no domain in common"):
        summarise([example_run("natural"), other])


@pytest.mark.parametrize(
    ("config", "label"),
    [
        ({"method": {"name": "odm", "label": "odm-fast"}}, "odm-fast"),
        ({"method": {"name": "odm"}}, "odm"),
        ({"method": "odm"}, "odm"),
        ({"policy": "runs/agent"}, "runs/agent"),
        ({}, "unnamed"),
    ],
)
def test_method_labels(config: dict[str, object], label: str) -> None:
    assert method_label(config) == label


def test_a_proxy_is_named_by_its_policy_without_the_state_of_its_networks() -> None:
    policies = [
        {"kind": "agent", "settings": {"power": power}, "state": [0.1] * 100_000}
        for power in (4.0, 0.0)
    ]
    labels = [method_label({"proxy": {}, "policy": policy}) for policy in policies]
    assert all(re.fullmatch("agent [0-9a-f]{6}", label) for label in labels)
    assert len(set(labels)) == 2


def test_the_state_of_a_proxys_networks_is_not_on_the_page(tmp_path: Path) -> None:
    policy = {
        "kind": "agent",
        "settings": {"power": 4.0},
        "state": {"weights": [0.123456789] * 10_000},
    }
    run = example_run("agent", config={"proxy": {}, "policy": policy})
    page = write_report([run], tmp_path / "report.html").read_text()
    assert "0.123456789" not in page
    assert "sha256 " in page


@pytest.mark.parametrize(
    ("config", "shown"),
    [
        ({"model": "llama-1m"}, "llama-1m"),
        (
            {"model": "base-s0-12345678", "model_sha256": "0" * 64},
            "continued from base-s0-12345678",
        ),
        ({"model": {"model_type": "llama", "hidden_size": 64}}, "model_type llama, hidden_size 64"),
    ],
)
def test_models_are_named(config: dict[str, object], shown: str, tmp_path: Path) -> None:
    page = write_report([example_run("natural", config=config)], tmp_path / "r.html").read_text()
    assert f"<dt>Model</dt><dd>{shown}</dd>" in page


def test_numbers_as_text() -> None:
    assert (number(-1.0), signed(0.5), signed(-0.5, 1), number(None)) == (
        "−1.000",
        "+0.500",
        "−0.5",
        "–",
    )
    assert (amount(999), amount(1_234_567), amount(4.5e15)) == ("999", "1.23 M", "4.5 P")
    assert (duration(3.24), duration(61), duration(7_260)) == ("3.24 s", "1 min 01 s", "2 h 01 min")


class Tags(HTMLParser):
    """Every element and attribute of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.attributes += attrs


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7 * 7 }}"


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    run = example_run(
        "natural",
        config={
            "method": {"name": HOSTILE},
            "model": HOSTILE,
            "corpus": HOSTILE,
            "note": [HOSTILE],
        },
    )
    odd = replace(run, id=HOSTILE, cost=Cost())
    page = write_report(
        [odd], tmp_path / "r.html", HOSTILE, statuses={HOSTILE: HOSTILE}, facts={HOSTILE: HOSTILE}
    ).read_text()
    plain = write_report([example_run("natural")], tmp_path / "plain.html").read_text()
    hostile_tags, plain_tags = Tags(page), Tags(plain)
    assert hostile_tags.elements.count("script") == plain_tags.elements.count("script") == 3
    assert "img" not in hostile_tags.elements
    assert not [name for name, _ in hostile_tags.attributes if name.startswith("on")]
    assert "49" not in re.findall(r"<h1>(.*?)</h1>", page)[0], "a title is no template"


def test_the_page_asks_the_network_for_nothing(tmp_path: Path) -> None:
    tags = Tags(write_report(compared(2), tmp_path / "r.html").read_text())
    assert not {"link", "iframe", "object", "embed", "base"} & set(tags.elements)
    assert not [
        value for name, value in tags.attributes if name in {"src", "href", "srcset", "action"}
    ]
    policy = next(
        value for _, value in tags.attributes if value and value.startswith("default-src")
    )
    assert "default-src 'none'" in policy
    assert "unsafe-eval" not in policy
    assert policy.split("script-src")[1].split(";")[0].count("sha256-") == 2


def test_the_same_runs_give_the_same_figures(tmp_path: Path) -> None:
    pages = [write_report(compared(2), tmp_path / f"{i}.html").read_text() for i in range(2)]
    blocks = [re.search(r'id="data">(.*?)</script>', page) for page in pages]
    assert all(blocks)
    first, second = (json.loads(block[1]) for block in blocks if block)
    assert first == second

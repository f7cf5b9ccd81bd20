"""What a decision rests on: the verdict card, who steered, what was lost, and true captions."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from cuvee.core.signals import Measured
from cuvee.core.trajectory import Cost, Run, Trajectory
from cuvee.evaluation.claims import Answered, Claim, answer_claims
from cuvee.report.figures.folding import folded
from cuvee.report.page import write_report
from cuvee.report.panels import interval_panels, mixture_panels
from cuvee.report.steering import Steering, steering
from cuvee.report.summary import MOST_METHODS, summarise
from cuvee.report.tables import final_table, run_table, spread_table
from cuvee.report.verdict import card
from cuvee.report.views import tokens_needed
from cuvee.report.words import captions, claim_sentence, headline, p_value
from cuvee.testing.runs import example_domains, example_run


def moved(run: Run, by: float, label: str = "better", **config: Any) -> Run:
    """The run under another label, with `by` added to its losses in proportion to progress."""
    signals = [
        replace(
            s,
            probes={name: Measured.all(m.values + by * s.progress) for name, m in s.probes.items()},
        )
        for s in run.trajectory.signals
    ]
    wobbled = Trajectory(signals, run.trajectory.mixtures)
    named = {"method": label, **config}
    return replace(run, id=f"{run.id}-{label}", config=named, trajectory=wobbled)


def compared(seeds: int) -> list[Run]:
    base = [example_run("natural", seed) for seed in range(seeds)]
    return base + [moved(run, -0.2 - 0.01 * run.seed) for run in base]


def guarded(*verdicts: str, **more: Any) -> list[dict[str, Any]]:
    return [{"guard": {"verdict": verdict, "alarms": {}}, **more} for verdict in verdicts]


def test_the_card_says_what_to_train_on_how_sure_what_it_saves_and_costs() -> None:
    found = card(summarise(compared(5)))
    assert found is not None
    assert found.choice == "Train on better"
    assert "over 5 paired seeds" in found.sure
    assert "of its tokens, the mean of 5 runs" in found.saves
    assert "1.00 times the FLOPs of natural’s; no proxies." in found.cost
    assert not found.trust


def test_few_seeds_are_a_hint_on_the_card() -> None:
    found = card(summarise(compared(3)))
    assert found is not None
    assert "3 paired seeds are few" in " ".join(found.trust)


def test_proxies_on_the_card_say_from_which_size_they_pay() -> None:
    proxies: dict[str, Any] = {"proxies": asdict(Cost(1_000_000, 5e12, 60.0)), "policy": "agent"}
    base = [example_run("natural", seed) for seed in range(5)]
    learned = [moved(run, -0.2 - 0.01 * run.seed, **proxies) for run in base]
    found = card(summarise([*base, *learned]))
    assert found is not None
    assert "5 T FLOPs of proxies once; they pay from" in found.cost


def test_steering_counts_decisions_that_were_not_the_policys() -> None:
    found = steering(guarded("accepted", "limited", "refused", "fallback", "operator"))
    assert found is not None
    assert found.others == {"the guard’s fallback mixture": 1, "an operator": 1}
    assert found.refused == 1
    assert found.taken == (3, 4)
    plan = steering(guarded("accepted", "accepted", acts="plan"))
    assert plan is not None
    assert (plan.others, plan.planned) == ({}, 2), "a plan is the method's own"
    assert steering([{}, {"loss": 1.0}]) is None


def test_a_fallback_is_never_credited_to_the_agent(tmp_path: Path) -> None:
    runs = compared(5)
    agent = runs[-1]
    steered = {agent.id: Steering(20, {"accepted": 15, "fallback": 5}, {}, ("collapse",))}
    found = card(summarise(runs, steered=steered))
    assert found is not None
    assert found.choice == "Keep natural"
    (note,) = found.trust
    assert note == (
        "better: the guard’s fallback mixture steered 25% of its intervals (alarms: collapse). "
        "The method gets no credit for it."
    )
    page = write_report(runs, tmp_path / "r.html", steered=steered).read_text()
    assert note in page
    assert "the guard’s fallback mixture steered 5 intervals" in page


def test_a_plan_is_named_and_credited() -> None:
    runs = compared(5)
    steered = {run.id: Steering(20, {"accepted": 20}, {"plan": 20}) for run in runs[5:]}
    found = card(summarise(runs, steered=steered))
    assert found is not None
    assert found.choice == "Train on better"
    assert found.trust == ("better: its plan, not its agent, steered 100% of its intervals.",)


def test_a_claim_of_a_method_that_something_else_steered_is_not_confirmed() -> None:
    losses = {"a": {s: 3.0 + 0.01 * s for s in range(5)}, "b": dict.fromkeys(range(5), 3.5)}
    made = [Answered(Claim("a", "b"), None, 0, 10, "today", credited=c) for c in (True, False)]
    plain, steered = answer_claims(made, losses.__getitem__)
    assert (plain.answer, steered.answer) == ("confirmed", "open")
    assert "gets no credit" in claim_sentence(steered)
    assert "gets no credit" not in claim_sentence(plain)


def test_lost_work_is_counted_apart() -> None:
    run = example_run("natural")
    spent = run.cost
    twice = replace(run, cost=Cost(2 * spent.tokens, 2 * spent.flops, 2 * spent.seconds))
    summary = summarise([twice])
    assert asdict(summary.methods[0].cost) == pytest.approx(asdict(spent))
    table = final_table(summary)
    cells = dict(zip(table.columns, table.rows[0].cells, strict=True))
    plain = final_table(summarise([run])).rows[0].cells[table.columns.index("Tokens")]
    assert cells["Tokens"].text == plain.text
    assert cells["Tokens"].note == f"{plain.text} lost, not counted"
    assert "lost" in run_table(summary).rows[0].cells[4].note


@pytest.mark.parametrize(
    ("shares", "reached", "typical"),
    [
        ([0.5, 0.7], 2, 0.6),
        ([0.5, 0.7, None], 2, 0.7),
        ([0.5, None, None], 1, None),
        ([0.5, None], 1, None),
        ([None], 0, None),
        ([], 0, None),
    ],
)
def test_runs_that_never_got_there_are_censored(
    shares: list[float | None], reached: int, typical: float | None
) -> None:
    found = tokens_needed(shares)
    assert (found.reached, found.runs) == (reached, len(shares))
    assert found.typical == (None if typical is None else pytest.approx(typical))


@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
def test_captions_are_true_for_the_seeds_there_are(seeds: int, tmp_path: Path) -> None:
    runs = compared(seeds)
    summary = summarise(runs)
    said = captions(summary)
    several = seeds > 1
    assert ("excludes zero" in said["domains"]) == several
    assert ("With one seed" in said["intervals"]) != several
    assert (f"over {seeds} paired seeds" in said["intervals"]) == several
    assert ("too narrow" in said["intervals"]) == (1 < seeds < 5)
    assert ("means over seeds" in said["final"]) == several
    assert ("Thin lines" in said["curves"]) == several
    assert ("corrected for the number of methods" in said["paired"]) is False, "one method only"
    page = write_report(runs, tmp_path / "r.html").read_text()
    assert ("With one seed there is no interval" in page) != several
    assert (f"{seeds} seeds" in page) == several


def test_captions_say_what_marks_bands_and_lines_there_are() -> None:
    runs = compared(3)
    plain = captions(summarise(runs))
    assert "Triangles" not in plain["mixtures"]
    assert "a band" not in plain["curves"]
    assert plain["final"].endswith("set in bold.")
    assert "Below each loss: the range over seeds." in plain["final"]
    taken = {runs[0].id: Steering(20, {"accepted": 19, "fallback": 1}, {}, (), (7,))}
    assert "Triangles" in captions(summarise(runs, steered=taken))["mixtures"]
    mixed = captions(summarise([*runs[:3], runs[3]]))
    assert "the range over seeds; with one run, the change" in mixed["final"]
    many = captions(summarise([example_run("natural", seed) for seed in range(9)]))
    assert "Thin lines" not in many["curves"]
    assert "Of more than 8 seeds, a band shows the range" in many["curves"]


def test_a_caption_names_no_column_that_is_not_there() -> None:
    plain = captions(summarise(compared(3)))["paired"]
    assert "Proxies pay" not in plain
    spent: dict[str, Any] = {"proxies": asdict(Cost(1_000, 5e9, 6.0)), "policy": "agent"}
    runs = compared(3)
    learned = [moved(run, -0.2, **spent) for run in runs[:3]]
    assert "Proxies pay" in captions(summarise([*runs[:3], *learned]))["paired"]


def test_one_method_that_is_lowest_on_both_roles_is_named_once() -> None:
    (both,) = [one for one in headline(summarise(compared(3))) if "target" in one and "both" in one]
    assert both.startswith(
        "better had the lowest validation loss on both the target and the source"
    )


def test_methods_that_are_in_no_figure_have_no_line_beside_their_name() -> None:
    runs = [example_run(f"method-{n}", 0) for n in range(11)]
    marks = [row.method for row in final_table(summarise(runs)).rows]
    assert marks == [*range(MOST_METHODS), None, None, None]


@pytest.mark.parametrize(
    ("value", "text"), [(0.0123, "p = 0.012"), (1e-5, "p < 0.001"), (None, "")]
)
def test_p_values_as_text(value: float | None, text: str) -> None:
    assert p_value(value) == text


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_band_of_ties_is_drawn_where_the_caption_names_it(seeds: int) -> None:
    summary = summarise(compared(seeds))
    panels = interval_panels(summary)
    bands = [any(s.type == "rect" for s in one.figure.layout.shapes) for one in panels]
    assert bands == [seeds > 1, *[False] * (len(panels) - 1)]
    assert ("first of these figures, the shaded band" in captions(summary)["intervals"]) == (
        seeds > 1
    )


def test_the_spread_of_crossed_seeds_is_divided_among_the_parts_of_a_run() -> None:
    runs = []
    for number, (weights, order) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
        seeds = {"weights": weights, "order": order, "agent": 0}
        base = replace(example_run("natural", 0, config={"part_seeds": seeds}), seed=number)
        base = moved(base, 0.3 * weights, "natural", part_seeds=seeds)
        runs += [base, moved(base, -0.1 - 0.2 * order, "odm", part_seeds=seeds)]
    table = spread_table(summarise(runs))
    assert table is not None
    assert table.columns[1:] == ("Initial weights", "Order of the data", "Combinations of them")
    shares = {row.head: [cell.text for cell in row.cells[1:]] for row in table.rows}
    assert shares["natural"] == ["100%", "0%", "0%"]
    assert shares["Δ odm"] == ["0%", "100%", "0%"]
    found = card(summarise(runs))
    assert found is not None
    assert "Intervals resample the seeds of each part" in " ".join(found.trust)
    assert "2 crossed seeds are few" in " ".join(found.trust)
    said = captions(summarise(runs))["intervals"]
    assert "over 4 paired runs of 2 crossed seeds" in said
    assert "Strokes are single runs." in said
    assert "too narrow" in said
    assert mixture_panels(summarise(runs))[0].heading == "natural, mean of 4 runs"
    assert spread_table(summarise(compared(5))) is None


def test_more_domains_than_a_page_can_show_are_drawn_as_one(tmp_path: Path) -> None:
    domains = example_domains(150, 30)
    runs = [example_run(name, 0, domains=domains, intervals=4) for name in ("natural", "odm")]
    summary = summarise(runs)
    few = folded(summary)
    names = [domain.name for domain in few.domains]
    assert len(names) <= 106
    others = [name for name in names if "-other-" in name]
    assert others == [f"{150 - sum(n.startswith('source') for n in names)}-other-sources",
                      f"{30 - sum(n.startswith('target') for n in names)}-other-targets"]  # fmt: skip
    before, after = summary.runs[0].run.trajectory, few.runs[0].run.trajectory
    assert after.tokens_T1().tolist() == before.tokens_T1().tolist()
    assert after.last_mixture is not None
    assert after.last_mixture.weights_K.sum() == pytest.approx(1.0)
    final = summary.runs[0].final_K
    assert final is not None
    rest = [k for k, domain in enumerate(summary.domains) if domain.name not in names]
    sources = [k for k in rest if not summary.domains[k].is_target]
    ours = few.runs[0].final_K
    assert ours is not None
    assert ours[names.index(others[0])] == pytest.approx(final[sources].mean())
    page = write_report(runs, tmp_path / "page.html").read_text()
    assert "104 domains with the largest shares of 180" in page
    assert folded(summarise(compared(2))).domains == summarise(compared(2)).domains

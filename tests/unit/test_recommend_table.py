"""Tables of runs: which columns are found, which rows are quarantined and why, and unusable
tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from cuvee.core.errors import ConfigError, StoreError
from cuvee.recommend.reading import Columns, read_runs
from cuvee.recommend.table import Runs, in_phases, is_score, runs_of
from cuvee.testing.runs import example_domains, example_run

ROWS = [
    {"run": f"r{n}", "mix_web": 0.1 * n, "mix_code": 1 - 0.1 * n, "mmlu": 0.3 + n, "loss": 3.0 - n}
    for n in range(10)
]


def csv_of(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_mixtures_are_the_columns_of_one_prefix_that_sum_to_one(tmp_path: Path) -> None:
    runs = read_runs([csv_of(tmp_path / "runs.csv", ROWS)])
    assert runs.domains == ("web", "code")
    assert runs.metrics == ("mmlu", "loss")
    assert runs.names[3] == "r3"
    assert runs.mixtures_NPK[3] == pytest.approx(np.array([[0.3, 0.7]]))
    assert runs.values_ND[3].tolist() == [3.3, 0.0]
    assert runs.bad == ()


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_other_formats_read_the_same(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"runs.{suffix}"
    if suffix == "jsonl":
        nested = [
            {
                "run": row["run"],
                "mix": {"web": row["mix_web"], "code": row["mix_code"]},
                "loss": row["loss"],
            }
            for row in ROWS
        ]
        path.write_text("\n".join(json.dumps(row) for row in nested))
    else:
        parquet.write_table(pa.Table.from_pylist(ROWS), path)
    runs = read_runs([path], Columns(metrics=("loss",)))
    assert runs.domains == ("web", "code")
    assert runs.metrics == ("loss",)
    assert runs.values_ND[:, 0].tolist() == [row["loss"] for row in ROWS]


def test_phases_are_found_and_have_shares(tmp_path: Path) -> None:
    rows = [
        {"phase_0_a": 0.5, "phase_0_b": 0.5, "phase_1_a": n / 9, "phase_1_b": 1 - n / 9, "loss": n}
        for n in range(10)
    ]
    path = csv_of(tmp_path / "runs.csv", rows)
    runs = read_runs([path], Columns(shares=(0.75, 0.25)))
    assert runs.domains == ("a", "b")
    assert runs.mixtures_NPK.shape == (10, 2, 2)
    assert runs.moves
    assert runs.mean_NK[9] == pytest.approx([0.625, 0.375])
    assert read_runs([path]).notes == ("phases are taken to be equally long",)
    with pytest.raises(ConfigError, match="give 2 shares above 0 that sum to 1"):
        read_runs([path], Columns(shares=(0.5, 0.6)))


def test_a_second_phase_that_most_runs_lack_is_no_metric(tmp_path: Path) -> None:
    later = [{"phase_1_a": n / 9, "phase_1_b": 1 - n / 9} for n in range(10)]
    rows = [
        {"phase_0_a": 0.5, "phase_0_b": 0.5, **(later[n] if n < 5 else dict.fromkeys(later[n], ""))}
        | {"loss": n}
        for n in range(10)
    ]
    path = csv_of(tmp_path / "runs.csv", rows)
    with pytest.raises(
        ConfigError, match=r"phase_\{phase\}_\{\} sum to 1 in 5 of 10 rows, in each phase"
    ):
        read_runs([path])
    assert len(read_runs([path], Columns(mixture="phase_0_{}", metrics=("loss",))).names) == 10


def test_published_layouts_are_known_by_their_files(tmp_path: Path) -> None:
    (tmp_path / "ratios.csv").write_text(
        "run,name,index,dclm/health,wiki\n" + "".join(f"{n},x,{n},0.25,0.75\n" for n in range(9))
    )
    (tmp_path / "metrics.csv").write_text(
        "run,name,index,arc\n" + "".join(f"{n},x,{n},{n}\n" for n in range(9))
    )
    runs = read_runs([tmp_path])
    assert runs.domains == ("dclm.health", "wiki")
    assert runs.metrics == ("arc",)
    with pytest.raises(ConfigError, match="has no layout that is known"):
        read_runs([tmp_path / ".."])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"mix_web": 0.9}, "sum to 1.8"),
        ({"mix_web": -0.1, "mix_code": 1.1}, "negative"),
        ({"mix_web": "x"}, "could not convert"),
        ({"loss": "inf"}, "no measurement"),
        ({"loss": "", "mmlu": ""}, "no metric at all"),
        ({"run": "r0"}, "stands in line 2 too"),
        ({"mix_web": 0.2, "mix_code": 0.8, "mmlu": 2.3, "loss": 1.0}, "one run twice"),
    ],
)
def test_a_bad_row_is_quarantined_with_line_and_reason(
    tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    more = [{**row, "run": f"s{n}", "loss": 9.0 + n} for n, row in enumerate(ROWS)]
    rows = [*ROWS, *more, {**ROWS[1], "run": "odd", **change}]
    runs = read_runs([csv_of(tmp_path / "runs.csv", rows)])
    assert len(runs.names) == 20
    assert [row.line for row in runs.bad] == [22]
    assert reason in runs.bad[0].reason
    assert runs.bad[0].file.endswith("runs.csv")


def test_too_many_bad_rows_stop_the_reading(tmp_path: Path) -> None:
    rows = [{**row, "mix_web": 5} if n < 5 else row for n, row in enumerate(ROWS)]
    with pytest.raises(StoreError, match=r"5 of 10 rows are bad, the first .*runs.csv:2"):
        read_runs([csv_of(tmp_path / "runs.csv", rows)], Columns(mixture="mix_{}"))


def test_a_table_without_mixtures_or_metrics_is_refused(tmp_path: Path) -> None:
    path = csv_of(tmp_path / "runs.csv", [{"a": n, "b": 1} for n in range(9)])
    with pytest.raises(ConfigError, match="no columns of one prefix sum to 1"):
        read_runs([path])
    path = csv_of(tmp_path / "runs.csv", [{"a": 0.5, "b": 0.5} for n in range(9)])
    with pytest.raises(ConfigError, match="no column is a metric"):
        read_runs([path])
    with pytest.raises(ConfigError, match="no column is like 'nothing'"):
        read_runs([csv_of(tmp_path / "runs.csv", ROWS)], Columns(metrics=("nothing",)))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("run;mix_a;mix_b;loss", "separate cells by commas, not by ';'"),
        ("", "has no columns: is it empty"),
        ("run,mix_a,mix_a,loss", "has several columns 'mix_a'"),
        ("run,mix_a b,mix_a.b,loss", "'mix_a b' and 'mix_a.b' both mean 'a.b'"),
        ("run,mix_数学,mix_b,loss", "the column 'mix_数学' gives no domain's name"),
    ],
)
def test_a_header_that_cannot_be_read_is_named(tmp_path: Path, header: str, message: str) -> None:
    path = tmp_path / "runs.csv"
    cells = "".join(f"\nr{n},{n / 9},{1 - n / 9},{n}" for n in range(10)) if "," in header else ""
    path.write_text(header + cells)
    with pytest.raises(ConfigError, match=message):
        read_runs([path])


def test_a_table_in_another_encoding_is_named(tmp_path: Path) -> None:
    path = csv_of(tmp_path / "runs.csv", ROWS)
    path.write_text(path.read_text(), encoding="utf-16")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        read_runs([path])


@pytest.mark.parametrize(
    ("web", "code", "message"),
    [
        (60.0, 40.0, "the 2 columns mix_… sum to 100: divide percent by 100"),
        (0.9, 0.4, "the 2 columns mix_… sum to 1.3"),
        (-0.1, 1.1, "mix_web is negative"),
    ],
)
def test_the_first_row_without_shares_is_named(
    tmp_path: Path, web: float, code: float, message: str
) -> None:
    rows = [{**row, "mix_web": web, "mix_code": code} for row in ROWS]
    with pytest.raises(ConfigError, match=f"in line 2, {message}"):
        read_runs([csv_of(tmp_path / "runs.csv", rows)])


def test_each_name_given_must_mean_a_column(tmp_path: Path) -> None:
    path = csv_of(tmp_path / "runs.csv", ROWS)
    with pytest.raises(ConfigError, match="no column is like 'typo'"):
        read_runs([path], Columns(metrics=("loss", "typo")))
    with pytest.raises(ConfigError, match="no column is like 'typo'"):
        read_runs([path], Columns(higher=("mmlu", "typo")))
    with pytest.raises(ConfigError, match=r"--key 'rum' is no column of .*did you mean 'run'"):
        read_runs([path], Columns(key="rum"))


def test_all_columns_but_named_metrics_can_be_the_mixture(tmp_path: Path) -> None:
    rows = [{name.removeprefix("mix_"): cell for name, cell in row.items()} for row in ROWS]
    path = csv_of(tmp_path / "runs.csv", rows)
    with pytest.raises(ConfigError, match="or name the metrics with --metrics"):
        read_runs([path])
    assert read_runs([path], Columns(metrics=("mmlu", "loss"))).domains == ("web", "code")


def test_a_metric_with_an_odd_cell_stays_a_metric(tmp_path: Path) -> None:
    rows = [{**row, "loss": "N/A" if n == 3 else row["loss"]} for n, row in enumerate(ROWS)]
    runs = read_runs([csv_of(tmp_path / "runs.csv", rows)])
    assert runs.metrics == ("mmlu", "loss")
    assert [row.reason for row in runs.bad] == [
        "loss is 'N/A', which is not a number: leave the cell empty if it is missing"
    ]


def test_a_number_that_overflows_is_quarantined(tmp_path: Path) -> None:
    rows = [*ROWS, {**ROWS[0], "run": "odd", "loss": 10**400}]
    path = tmp_path / "runs.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    assert [row.line for row in read_runs([path]).bad] == [11]


def table(count: int = 12, **change: Any) -> Runs:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(count, 2))
    runs = Runs(
        names=tuple(map(str, range(count))),
        domains=("web", "code"),
        metrics=("loss", "score"),
        mixtures_NPK=rng.dirichlet([1, 1], (count, 1)),
        values_ND=values,
        shares_P=np.ones(1),
    )
    return Runs(**{**runs.__dict__, **change})


def test_a_constant_metric_is_left_out_and_said_so() -> None:
    values = table().values_ND.copy()
    values[:, 1] = 0.25
    runs, costs = table(values_ND=values).usable(None)
    assert runs.metrics == ("loss",)
    assert costs == {"loss": 1.0}
    assert runs.notes == ("score is left out: it is 0.25 in every run",)
    with pytest.raises(ConfigError, match=r"objective score cannot be fitted: it is 0\.25"):
        table(values_ND=values).usable({"score": 1.0})


def test_a_metric_that_most_runs_lack_is_left_out() -> None:
    values = table().values_ND.copy()
    values[:6, 1] = np.nan
    runs, _ = table(values_ND=values).usable(None)
    assert runs.metrics == ("loss",)
    assert "6 different mixtures" in runs.notes[0]


@pytest.mark.parametrize("count", [1, 7])
def test_too_few_runs_are_refused(count: int) -> None:
    with pytest.raises(ConfigError, match="different mixtures, and a fit needs at least 8"):
        table(count).usable(None)


def test_a_score_is_not_minimised_by_default() -> None:
    with pytest.raises(ConfigError, match="add --higher score, or choose with --objective"):
        table().usable(None)
    _, costs = table(higher=frozenset({"score"})).usable(None)
    assert costs == {"loss": 0.5, "score": -0.5}
    assert table().usable({"score": 1.0})[1] == {"score": 1.0}
    assert is_score("eval/ARC_acc")
    assert is_score("f1")
    assert not is_score("mmlu_bpb")
    assert not is_score("perplexity")


def test_an_objective_needs_runs_with_all_of_its_metrics() -> None:
    values = table(24).values_ND.copy()
    values[::2, 0] = np.nan
    values[1::2, 1] = np.nan
    with pytest.raises(ConfigError, match="0 different mixtures have all 2 metrics"):
        table(24, values_ND=values).usable({"loss": 1.0, "score": 1.0})
    with pytest.raises(ConfigError, match="weighs loss by 0"):
        table().usable({"loss": 0.0})


def test_a_table_that_takes_hours_to_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="10,000 runs, and a fit takes at most 4,096"):
        table(10_000).usable(None)


def test_higher_is_better_turns_the_sign() -> None:
    _, costs = table(higher=frozenset({"score"})).usable({"loss": 1.0, "score": 0.5})
    assert costs == {"loss": 1.0, "score": -0.5}


def test_tokens_of_an_unknown_domain_are_refused_and_missing_ones_noted() -> None:
    with pytest.raises(
        ConfigError, match="'wbe', which is no domain of the table; did you mean 'web'"
    ):
        table().with_available({"wbe": 1})
    assert table().with_available({"web": 1}).notes == (
        "the tokens of code are not known, so they have no cap",
    )


def test_noise_is_pooled_over_repeats_of_one_mixture() -> None:
    assert table().noise_D() is None
    mixtures, values = table().mixtures_NPK.copy(), table().values_ND.copy()
    mixtures[1], mixtures[3] = mixtures[0], mixtures[2]
    values[:4, 0] = [1.0, 3.0, 5.0, 5.0]
    noise = table(mixtures_NPK=mixtures, values_ND=values).noise_D()
    assert noise is not None
    assert noise[0] == pytest.approx(1.0)  # (1 + 1 + 0 + 0) / 2 degrees of freedom


def test_intervals_across_a_border_of_phases_are_split() -> None:
    path = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    thirds = in_phases(path, 3)
    assert thirds == pytest.approx(np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]))
    assert thirds.mean(axis=0) == pytest.approx(path.mean(axis=0))


def test_runs_of_a_store_become_a_table_with_curves() -> None:
    domains = example_domains(3, 1)
    logged = [example_run("odm", seed, domains=domains) for seed in range(9)]
    logged.append(example_run("odm", 9, domains=domains, done=7))
    runs = runs_of(logged)
    assert runs.mixtures_NPK.shape == (9, 3, 4)
    assert runs.metrics[0] == "loss/source-0"
    assert runs.available["source-0"] == 400_000
    assert [row.reason for row in runs.bad] == ["did not finish"]
    assert len(runs.curves) == 9
    assert "tokens read differ from the plan by at most 0.0" in runs.notes[1]
    assert runs.curves[0].measured_TY.shape == (21, 4)
    assert runs.curves[0].measured_TY[-1] == pytest.approx(runs.values_ND[0])

"""How well do RegMix's fits rank unseen runs? On the published tables of real runs.

    python benchmarks/regmix.py --tables DIR                    all fits, 4 minutes on one core
    python benchmarks/regmix.py --tables DIR --fits log_linear

DIR holds `train_mixture_1m.csv`, `train_pile_loss_1m.csv` and the same two of `test`: 512 and 256
runs of a 1M-parameter model on The Pile. Every fit sees the 512 only: five-fold cross-validation
compares the fits, and then each ranks the 256. Figures: Spearman's ρ between predicted and real
loss, by domain, with a 95 % bootstrap interval over the 256 runs; the mean over domains; and ρ of
the mean loss over domains.

The last section uses subsets of the 512, evaluated on the 256: ρ of the mean loss over domains,
fitted domain by domain and then summed, or directly, as the paper does with its one domain.

The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from cuvee.evaluation.ranks import RankCorrelation, rank_correlation
from cuvee.fleet.store.foreign import Columns, import_tables
from cuvee.fleet.store.store import Store
from cuvee.methods.regmix.fit import FITS, cross_validated
from cuvee.methods.regmix.runs import Table

COLUMNS = Columns(mixture="train_the_pile_{}", loss="metric/the_pile_{}_val_loss")
HEADLINE = "pile_cc"
FEW = (32, 64, 128)
DRAWS = 5


def load(folder: Path) -> tuple[Table, Table]:
    """The runs to fit and the runs to rank, by way of a store as any other logs of others."""
    with tempfile.TemporaryDirectory() as scratch, Store.open(Path(scratch) / "runs.db") as store:
        tables = []
        for part in ("train", "test"):
            files = folder / f"{part}_mixture_1m.csv", folder / f"{part}_pile_loss_1m.csv"
            imported = import_tables(store, *files, group=part, columns=COLUMNS, most_bad=0.0)
            runs = [store.load(run_id) for run_id in imported.run_ids]
            tables.append(Table.of(runs[0].trajectory.domains, runs, "valid_loss"))
    assert tables[0].valued == tables[1].valued
    return tables[0], tables[1]


def ranked(predicted_MD: Any, test: Table) -> dict[str, Any]:
    by_domain = {
        name: rank_correlation(predicted_M, losses_M)
        for name, predicted_M, losses_M in zip(
            test.valued, predicted_MD.T, test.losses_ND.T, strict=True
        )
    }
    mean_loss = rank_correlation(predicted_MD @ test.values_D, test.losses_ND @ test.values_D)
    return {
        "by_domain": by_domain,
        "mean": float(np.mean([found.value for found in by_domain.values()])),
        "mean_loss": mean_loss,
    }


def evaluate(name: str, train: Table, test: Table) -> dict[str, Any]:
    unseen_ND = cross_validated(FITS[name], train.mixtures_NK, train.losses_ND)
    fits = [FITS[name](train.mixtures_NK, losses_N) for losses_N in train.losses_ND.T]
    found = ranked(np.stack([predict(test.mixtures_NK) for predict in fits], axis=1), test)
    cross = ranked(unseen_ND, train)
    print(f"\n{name}\n  {'domain':20} {'256 unseen runs':>25} {'cross-validated':>17}")
    for domain, ranks in found["by_domain"].items():
        print(f"  {domain:20} {said(ranks):>25} {cross['by_domain'][domain].value:17.4f}")
    print(f"  {'mean over domains':20} {found['mean']:.4f}{'':19} {cross['mean']:17.4f}")
    print(
        f"  {'mean loss':20} {said(found['mean_loss']):>25} {cross['mean_loss'].value:17.4f}",
        flush=True,
    )
    return {
        "mean": found["mean"],
        HEADLINE: asdict(found["by_domain"][HEADLINE]),
        "mean_loss": asdict(found["mean_loss"]),
        "by_domain": {domain: ranks.value for domain, ranks in found["by_domain"].items()},
        "cross_validated": {"mean": cross["mean"], HEADLINE: cross["by_domain"][HEADLINE].value},
    }


def few(name: str, train: Table, test: Table) -> dict[str, dict[str, float]]:
    """ρ of the mean loss from `FEW` runs, by domain and directly: means over `DRAWS` subsets."""
    figures: dict[str, dict[str, float]] = {}
    real_M = test.losses_ND @ test.values_D
    for count in FEW:
        ways: dict[str, list[float]] = {"by_domain": [], "directly": []}
        for seed in range(DRAWS):
            rows = np.random.Generator(np.random.PCG64([seed, count])).permutation(
                len(train.mixtures_NK)
            )[:count]
            mixtures, losses = train.mixtures_NK[rows], train.losses_ND[rows]
            by_domain = [FITS[name](mixtures, losses_N)(test.mixtures_NK) for losses_N in losses.T]
            directly = FITS[name](mixtures, losses @ train.values_D)(test.mixtures_NK)
            for way, predicted_M in (
                ("by_domain", np.stack(by_domain, axis=1) @ test.values_D),
                ("directly", directly),
            ):
                ways[way].append(rank_correlation(predicted_M, real_M, resamples=1).value)
        figures[str(count)] = {way: float(np.mean(found)) for way, found in ways.items()}
        print(
            f"  {name:18} {count:4} runs: "
            + ", ".join(f"{way} {x:.3f}" for way, x in figures[str(count)].items()),
            flush=True,
        )
    return figures


def said(ranks: RankCorrelation) -> str:
    return f"{ranks.value:.4f} ({ranks.low:.4f}–{ranks.high:.4f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", type=Path, required=True)
    parser.add_argument("--fits", nargs="+", choices=list(FITS), default=list(FITS))
    chosen = parser.parse_args()
    train, test = load(chosen.tables)
    print(
        f"{len(train.mixtures_NK)} runs to fit, {len(test.mixtures_NK)} to rank, "
        f"{len(train.valued)} domains with a loss"
    )
    fits = {name: evaluate(name, train, test) for name in chosen.fits}
    best = max(fits, key=lambda name: fits[name]["cross_validated"]["mean"])
    print(f"\nbest by cross-validation: {best}\n\nmean loss over domains, from few runs")
    scarce = {name: few(name, train, test) for name in chosen.fits}
    print(json.dumps({"best": best, "fits": fits, "few": scarce}))


if __name__ == "__main__":
    main()

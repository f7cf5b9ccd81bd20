"""Tables of other projects become runs; rows that cannot be true are set aside with their line."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuvee.core.errors import StoreError
from cuvee.fleet.store.foreign import Columns, _Table, import_tables
from cuvee.fleet.store.store import Store
from cuvee.fleet.store.tabular import csv_rows

COLUMNS = Columns("train_{}", "metric/{}_val_loss")
MIXTURES = "index,train_web,train_code,train_maths\n"
LOSSES = "index,metric/code_val_loss,metric/web_val_loss\n"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store.sqlite") as store:
        yield store


def tables(folder: Path, mixtures: str, losses: str) -> tuple[Path, Path]:
    (folder / "mixtures.csv").write_text(MIXTURES + mixtures)
    (folder / "losses.csv").write_text(LOSSES + losses)
    return folder / "mixtures.csv", folder / "losses.csv"


def test_rows_are_joined_by_key_and_domains_by_name(store: Store, tmp_path: Path) -> None:
    files = tables(tmp_path, "a,0.5,0.5,0\nb,0.333,0.333,0.333\n", "b,2.5,3.25\na,1.5,\n")
    imported = import_tables(store, *files, group="swarm", columns=COLUMNS, tokens={"web": 7})
    again = import_tables(store, *files, group="swarm", columns=COLUMNS, tokens={"web": 7})
    assert imported == again
    assert imported.quarantined == ()
    a, b = (store.load(run_id) for run_id in imported.run_ids)
    assert [domain.tokens for domain in a.trajectory.domains] == [7, 0, 0]
    assert a.trajectory.mixtures[0].as_dict() == {"web": 0.5, "code": 0.5, "maths": 0.0}
    assert b.trajectory.mixtures[0]["web"] == 1 / 3
    assert a.trajectory.last.probes["valid_loss"].to_json() == [None, 1.5, None]
    assert b.trajectory.last.probes["valid_loss"].to_json() == [3.25, 2.5, None]
    assert b.config["lines"] == {"mixtures": 3, "losses": 2}
    assert len(b.config["imported"]["losses.csv"]) == 64
    assert [run.status for run in store.runs("swarm")] == ["done", "done"]


@pytest.mark.parametrize(
    ("mixture", "loss", "reason"),
    [
        ("x,0.5,0.6,0.1", "x,1,1", "sum to 1.2"),
        ("x,1.5,-0.5,0", "x,1,1", "negative"),
        ("x,nan,0.5,0.5", "x,1,1", "sum to nan"),
        ("x,0.5,0.5,0", "x,nan,1", "expected 0 to 1e+06"),
        ("x,0.5,0.5,0", "x,1e30,1", "expected 0 to 1e+06"),
        ("x,0.5,0.5,0", "x,-1,1", "expected 0 to 1e+06"),
        ("x,0.5,0.5,0", "x,,", "the row has no loss"),
        ("x,0.5,0.5,0", "", "no row 'x'"),
        ("x,0.5,=1+1,0", "x,1,1", "could not convert"),
        ("x,0.5,0.5", "x,1,1", "3 cells under 4"),
        ("x,0.5,0.5,0\nx,0.5,0.5,0", "x,1,1", "earlier row"),
        ("", "x,1,1", "no mixture has the key"),
    ],
)
def test_a_bad_row_is_set_aside_and_the_others_are_kept(
    store: Store, tmp_path: Path, mixture: str, loss: str, reason: str
) -> None:
    good = (
        "".join(f"{key},0.25,0.25,0.5\n" for key in range(12)),
        "".join(f"{key},1,2\n" for key in range(12)),
    )
    files = tables(
        tmp_path, good[0] + mixture + "\n" * bool(mixture), good[1] + loss + "\n" * bool(loss)
    )
    imported = import_tables(
        store, *files, group="g", columns=COLUMNS, quarantine=tmp_path / "bad.jsonl", most_bad=0.2
    )
    assert len(imported.run_ids) >= 12
    aside = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert any(reason in row["reason"] for row in aside)
    assert all(row["line"] >= 14 for row in aside)
    with pytest.raises(StoreError, match="rows are bad"):
        import_tables(store, *files, group="g", columns=COLUMNS, most_bad=0.0)


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("", COLUMNS, "no column 'index'"),
        ("a,b\n", COLUMNS, "no column 'index'"),
        ("index,other\n", COLUMNS, "at least one domain"),
        ("index,train_a b\n", COLUMNS, "not allowed"),
        ("index,train_a,train_a\n", COLUMNS, "unique"),
        ("index,train_a\n", Columns("train", "x"), "no {}"),
        ('index,train_a\n"x', COLUMNS, "no readable table"),
        ("index,train_other\n1,1\n", COLUMNS, "which are not in"),
    ],
)
def test_what_is_no_table_of_mixtures_is_refused(
    store: Store, tmp_path: Path, text: str, columns: Columns, message: str
) -> None:
    _, losses = tables(tmp_path, "", "1,1,1\n")
    (tmp_path / "mixtures.csv").write_text(text)
    with pytest.raises(StoreError, match=message):
        import_tables(store, tmp_path / "mixtures.csv", losses, group="g", columns=columns)
    with pytest.raises(StoreError, match="no readable table"):
        import_tables(store, tmp_path / "none.csv", losses, group="g")
    assert store.runs() == []


@given(st.lists(st.text() | st.binary().map(lambda raw: raw.decode("latin-1"))))
def test_no_text_breaks_the_reader(lines: list[str]) -> None:
    try:
        rows = csv_rows(csv.reader(["index,a", *lines], strict=True), Path("x"))
        table = _Table.of(rows, ("", ""), "index")
    except (StoreError, csv.Error):
        return
    assert len(table.rows) + len(table.bad) <= len(lines)

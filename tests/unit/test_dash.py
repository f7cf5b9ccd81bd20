"""The live page: what it shows of a store, and to whom."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cuvee.core.trajectory import Cost
from cuvee.fleet.store.store import Store
from cuvee.recipes.dashboard.view import RUN_COLUMNS, Dashboard, run_row
from cuvee.testing.runs import example_run

HOSTILE = "<script>document.title='stolen'</script>"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Two finished runs, one under way after three intervals, one waiting and one failed."""
    guard: dict[str, Any] = {
        "verdict": "limited",
        "limits": ["floor"],
        "alarms": {},
        "reason": None,
        "step": 30,
    }
    with Store.open(tmp_path / "store.sqlite") as store:
        for method in ("natural", "odm"):
            run = example_run(method)
            metrics = [{"guard": {**guard, "verdict": "accepted"}}] * (len(run.trajectory) - 1)
            store.add(method, run, group="g", metrics=[*metrics, {"guard": guard}])
        going = example_run("odm", 1)
        for name in ("going", "bad", "waits"):
            store.create(name, 1, {"method": name}, group="g", run_id=name, max_attempts=1)
        claim, bad = (store.claim_run(name, "host/1/2/3") for name in ("going", "bad"))
        claim.append(0, None, going.trajectory.at(0))
        for t in range(1, 4):
            claim.append(t, going.trajectory.mixtures[t - 1], going.trajectory.at(t), {}, Cost(t))
        bad.fail(f"MemoryError: {HOSTILE}", Cost(500))
        yield store


def test_runs_under_way_come_first_with_what_the_store_knows(store: Store) -> None:
    dashboard = Dashboard(store)
    rows = [dict(zip(RUN_COLUMNS, run_row(run), strict=True)) for run in dashboard.listed("g")]
    assert [row["run"] for row in rows[:3]] == ["going", "waits", "bad"]
    assert rows[0]["state"] == "running"
    assert rows[0]["intervals"] == "3"
    assert rows[0]["worker or reason"] == "host/1/2/3"
    assert rows[2]["worker or reason"] == f"MemoryError: {HOSTILE}"
    assert dashboard.status("g").tally.running == 1


def test_guard_events_are_those_that_were_not_simply_accepted(store: Store) -> None:
    dashboard = Dashboard(store)
    run = store.summary("example-odm-s0")
    assert dashboard.events(run) == [("20", "30", "limited", "floor", "", "")]


def test_a_run_is_read_again_when_it_has_more(store: Store) -> None:
    dashboard = Dashboard(store)
    path = example_run("odm", 1).trajectory
    store.create("own", 2, {"method": "own"}, run_id="own")
    claim = store.claim_run("own", "host/1/2/3")
    claim.append(0, None, path.at(0))
    claim.append(1, path.mixtures[0], path.at(1), {}, Cost(1))
    first = dashboard.load(store.summary("own"))
    assert dashboard.load(store.summary("own")) is first
    claim.append(2, path.mixtures[1], path.at(2), {}, Cost(2))
    assert len(dashboard.load(store.summary("own")).trajectory) == 2
    assert list(dashboard.run_figures(store.summary("own"))) == ["Mixture", "Epochs"]
    assert dashboard.losses("g") is not None


def test_the_page_answers_this_computer_only_and_loads_nothing_from_elsewhere(
    store: Store,
) -> None:
    pytest.importorskip("dash", reason="needs cuvee[dash]")
    from cuvee.recipes.dashboard.app import build

    client = build(Dashboard(store)).server.test_client()
    page = client.get("/", headers={"Host": "127.0.0.1:8350"})
    assert page.status_code == 200
    assert "://" not in page.text.replace("http://www.w3.org", "")
    assert client.get("/", headers={"Host": "evil.example:8350"}).status_code == 403
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 403


def test_a_browser_shows_runs_figures_and_text_as_it_is(store: Store, tmp_path: Path) -> None:
    pytest.importorskip("dash", reason="needs cuvee[dash]")
    from browser import browse
    from cuvee.recipes.dashboard.app import HOST, server

    serving = server(Dashboard(store), 0)
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    try:
        address = f"http://{HOST}:{serving.server_port}/"
        page = browse(address, tmp_path / "profile", "--dump-dom").stdout
    finally:
        serving.shutdown()
    assert "1 running, 1 waiting, 2 done, 1 failed" in page
    assert "MemoryError: &lt;script&gt;" in page
    assert "<title>cuvee</title>" in page
    assert page.count("js-plotly-plot") == 3

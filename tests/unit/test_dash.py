"""The live page: what it shows of a store, and to whom."""

from __future__ import annotations

import html
import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cuvee.core.trajectory import Cost
from cuvee.fleet.store.store import Store
from cuvee.recipes.dashboard.view import (
    BAD_COLUMNS,
    HOST_COLUMNS,
    RUN_COLUMNS,
    WORKER_COLUMNS,
    Dashboard,
    run_row,
)
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
    assert rows[0]["worker or reason"] == "process 2 on host"
    assert rows[2]["worker or reason"] == f"MemoryError: {HOSTILE}"
    assert dashboard.status("g").tally.running == 1


def test_the_fleet_has_hosts_workers_leases_and_lost_attempts(store: Store) -> None:
    store.create("silent", 9, {"method": "silent"}, group="h", run_id="silent")
    store.claim_run("silent", "far/1/7/8", lease_seconds=0.001)
    time.sleep(0.1)
    fleet = Dashboard(store).fleet(None)
    workers = [dict(zip(WORKER_COLUMNS, row, strict=True)) for row in fleet.workers]
    by_name = {row["worker"]: row for row in workers}
    busy, dead = by_name["process 2 on host"], by_name["process 7 on far"]
    assert (busy["state"], busy["trains"], busy["failed or lost"]) == ("training", "going", "1")
    assert busy["lease left"].endswith("s")
    assert (dead["state"], dead["trains"], dead["lease left"]) == ("dead", "silent", "expired")
    hosts = {row[0]: dict(zip(HOST_COLUMNS, row, strict=True)) for row in fleet.hosts}
    assert (hosts["host"]["workers"], hosts["host"]["training"]) == ("1", "1")
    assert (hosts["far"]["workers"], hosts["far"]["training"]) == ("1", "0")
    [bad] = [dict(zip(BAD_COLUMNS, row, strict=True)) for row in fleet.bad]
    assert (bad["run"], bad["outcome"], bad["tokens"]) == ("bad", "failed", "500")
    assert bad["reason"] == f"MemoryError: {HOSTILE}"
    assert "1 run in training and 1 run whose worker is gone. 1 attempt failed" in fleet.summary
    assert Dashboard(store).fleet("nobody").summary == "No worker has claimed a run yet."


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


@pytest.fixture
def address(store: Store) -> Iterator[str]:
    """The page is at this address, and at `phone` it is inside a frame of 390 pixels."""
    pytest.importorskip("dash", reason="needs cuvee[dash]")
    from werkzeug.serving import make_server

    from cuvee.recipes.dashboard.app import HOST, build

    pages = build(Dashboard(store)).server
    pages.add_url_rule("/phone", view_func=lambda: PHONE)
    serving = make_server(HOST, 0, pages, threaded=True)
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    yield f"http://{HOST}:{serving.server_port}/"
    serving.shutdown()


def test_a_browser_shows_runs_figures_fleet_and_text_as_it_is(address: str, tmp_path: Path) -> None:
    from browser import browse

    page = browse(address, tmp_path / "profile", "--dump-dom").stdout
    assert "1 running, 1 waiting, 2 done, 1 failed" in page
    assert "<title>cuvee</title>" in page
    assert page.count("js-plotly-plot") == 3
    assert "process 2 on host" in page
    assert "Attempts that failed or were lost" in page
    assert page.count("MemoryError: &lt;script&gt;") == 2


PHONE = """
<iframe src="/" width="390" height="4000"></iframe>
<script>
const waiting = setInterval(() => {
  const inside = document.querySelector("iframe").contentDocument;
  const plots = [...inside.querySelectorAll(".js-plotly-plot .main-svg")];
  if (inside.querySelectorAll("table").length < 4 || plots.length < 6) return;
  const right = (what) => Math.max(...what.map((one) => one.getBoundingClientRect().right));
  document.documentElement.dataset.seen = JSON.stringify({
    needed: inside.documentElement.scrollWidth,
    plots: right(plots),
    cells: right([...inside.querySelectorAll("td")]),
    label: inside.defaultView.getComputedStyle(inside.querySelector("td"), "::before").content,
  });
  clearInterval(waiting);
}, 4);
</script>
"""


def test_on_a_phone_rows_are_cards_and_nothing_is_cut(address: str, tmp_path: Path) -> None:
    from browser import browse

    options = ("--dump-dom", "--virtual-time-budget=60000")
    page = browse(f"{address}phone", tmp_path / "profile", *options)
    found = re.search(r'data-seen="([^"]*)"', page.stdout)
    assert found, page.stderr
    seen = json.loads(html.unescape(found[1]))
    assert max(seen["needed"], seen["plots"], seen["cells"]) <= 390
    assert seen["label"] == '"run"'

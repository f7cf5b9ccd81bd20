"""The faults of `fleet_faults.py`: where processes are killed, and faults planted into cuvee.

Run as a program it is one driver of a small fleet: fleet_parts.py FOLDER {json of Orders}.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from cuvee.core.mixture import Mixture
from cuvee.core.signals import Signals
from cuvee.fleet.attempts import AttemptCheckpoints
from cuvee.fleet.journal import RunJournal
from cuvee.fleet.local import FleetError, LocalFleet
from cuvee.fleet.store import claim as claims
from cuvee.fleet.store import schema
from cuvee.fleet.store.claim import Claim, ClaimLost
from cuvee.fleet.store.store import Store
from cuvee.policies.exp3 import Exp3
from cuvee.policies.fixed import Fixed
from cuvee.testing.toy import ToyTrainer

GROUP = "faults"
LAST = 10  # the number of a run's last row in the small fleets
FAILPOINTS = {
    "before a row": (Claim, "append", "before"),
    "before the last row": (Claim, "append", "before the last"),
    "inside a row's transaction": (Claim, "_renew", "after"),
    "after a row": (Claim, "append", "after"),
    "before a checkpoint": (AttemptCheckpoints, "save", "before"),
    "after a checkpoint": (AttemptCheckpoints, "save", "after"),
    "before the end is recorded": (Claim, "finish", "before"),
    "after the end is recorded": (Claim, "finish", "after"),
    "after a claim": (Store, "claim", "after"),
}


def policies(count: int) -> list[Fixed | Exp3]:
    fixed = [
        Fixed(Mixture.of({"web": i / 64, "code": (60 - i) / 64, "maths": 4 / 64}))
        for i in range(count - 1)
    ]
    return [*fixed, Exp3()]


class AckedTrainer(ToyTrainer):
    """Records in a file which rows are acknowledged.

    Interval t + 1 is requested only when row t is durable.
    """

    def __init__(self, seed: int, acks: str, early: bool, **toy: Any) -> None:
        super().__init__(seed=seed, **toy)
        self._acks, self._early = acks, early

    def advance(self, mixture: Mixture) -> Signals:
        self._acknowledge(mixture, self._step)
        signals = super().advance(mixture)
        if self._early:
            self._acknowledge(mixture, self._step)
        return signals

    def _acknowledge(self, mixture: Mixture, row: int) -> None:
        descriptor = os.open(self._acks, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, f"{mixture.digest()} {row}\n".encode())
        os.close(descriptor)


def make_trainer(proxy: Mapping[str, Any], seed: int) -> AckedTrainer:
    """Also arms the worker process that it is called in."""
    orders = json.loads(os.environ["FLEET_FAULTS"])
    _plant(orders["planted"])
    if orders["failpoint"]:
        _arm(*FAILPOINTS[orders["failpoint"]], Path(orders["fuse"]))
    return AckedTrainer(
        seed, orders["acks"], orders["planted"] == "acknowledged before the commit", **proxy
    )


def _arm(owner: type, name: str, when: str, fuse: Path) -> None:
    """Kills this process at the third call, unless it was already killed since this start."""
    original, passed = getattr(owner, name), [0]
    if hasattr(original, "armed"):
        return

    def armed(*arguments: Any, **named: Any) -> Any:
        result = original(*arguments, **named) if when == "after" else None
        passed[0] += 1
        here = (
            arguments[1] == LAST
            if when == "before the last"
            else passed[0] >= (1 if name in ("finish", "claim") else 3)
        )
        if here and not fuse.exists():
            fuse.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return result if when == "after" else original(*arguments, **named)

    armed.armed = True  # type: ignore[attr-defined]
    setattr(owner, name, armed)


def _plant(fault: str | None) -> None:
    if fault == "no fencing token":
        Claim._renew = _unfenced  # type: ignore[method-assign, assignment]
    elif fault == "a killed run counts as done":
        claims.end_attempt = _always_done  # type: ignore[assignment]
    elif fault == "end recorded before the last row" and RunJournal.record is _record:
        RunJournal.record = _marker_first  # type: ignore[method-assign]


def _unfenced(self: Claim, connection: sa.Connection, *arguments: Any) -> None:
    """Writes whoever has the run."""
    mine, run = self.attempt, schema.runs.c.id == self.run.id
    self.attempt = connection.execute(sa.select(schema.runs.c.attempt).where(run)).scalar_one()
    with suppress(ClaimLost):
        _renew(self, connection, *arguments)
    self.attempt = mine
    attempt = (schema.attempts.c.run_id == self.run.id) & (schema.attempts.c.number == mine)
    connection.execute(
        sa.update(schema.attempts).where(attempt).values(heartbeat=self._database.now(connection))
    )


def _always_done(connection: sa.Connection, run_id: str, attempt: int, *_: Any) -> str:
    return _end_attempt(connection, run_id, attempt, "done", None, 0.0)


_end_attempt = claims.end_attempt
_record: Callable[..., None] = RunJournal.record
_renew: Callable[..., None] = Claim._renew


def _marker_first(self: RunJournal, so_far: Any, trainer: Any, policy: Any, metrics: Any) -> None:
    if trainer.done:
        self.finish(trainer)
    _record(self, so_far, trainer, policy, metrics)


def main() -> None:
    """One driver, from wherever the fleet stands to its end."""
    folder, orders = Path(sys.argv[1]), json.loads(sys.argv[2])
    os.environ["FLEET_FAULTS"] = sys.argv[2]
    _plant(orders["planted"])
    with Store.open(folder / "store.sqlite") as store:
        fleet = LocalFleet(
            store,
            make_trainer,
            orders["proxy"],
            group=GROUP,
            workers=orders["workers"],
            checkpoints=folder / "checkpoints",
            every=3,
            max_attempts=orders["max_attempts"],
            lease_seconds=orders["lease"],
        )
        if orders["planted"] == "a restart repeats finished runs":
            again = sa.update(schema.runs).where(schema.runs.c.status == "done")
            store._database.write(lambda open_: open_.execute(again.values(status="waiting")))
        try:
            fleet.run(policies(orders["runs"]))
        except FleetError as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main()

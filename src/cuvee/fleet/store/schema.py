"""The tables of a run store. `migrations/` creates them; `HEAD` is the revision of this version.

The tables:

    runs        one row per run: what it is, its status, and the lease of its worker
    attempts    one row per claim by a worker: fencing token, outcome, cost
    spaces      the lists of domains that signals are measured over, by digest
    intervals   one row per interval: mixture (none for number 0), signals, the policy's metrics
    requests    one row per request of an operator to a run
    evaluations one row per result of a model on a task
"""

from __future__ import annotations

import sqlalchemy as sa

HEAD = "0003"

STATUSES = ("waiting", "running", "done", "failed")
OUTCOMES = ("running", "done", "failed", "lost", "released")

metadata = sa.MetaData()
_FINITE = 1e300


def _one_of(column: str, values: tuple[str, ...]) -> sa.CheckConstraint:
    return sa.CheckConstraint(sa.column(column).in_(values), name=f"{column}_known")


def _counts(*columns: str) -> list[sa.CheckConstraint]:
    """Return checks that the columns are finite and ≥ 0.

    A NaN is greater than every number in PostgreSQL and NULL in SQLite, so both reject it.
    """
    return [
        sa.CheckConstraint(sa.column(name).between(0, _FINITE), name=f"{name}_finite")
        for name in columns
    ]


runs = sa.Table(
    "runs",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("cohort", sa.String(200), index=True, doc="the group that was planned together"),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("config", sa.JSON, nullable=False),
    sa.Column("fingerprint", sa.String(64), nullable=False, doc="sha256 of config and seed"),
    sa.Column("status", sa.String(16), nullable=False, index=True),
    sa.Column("reason", sa.Text, doc="why it failed, or why its last attempt did"),
    sa.Column("max_attempts", sa.Integer, nullable=False),
    sa.Column(
        "created",
        sa.Double,
        nullable=False,
        index=True,
        doc="seconds since 1970 by the database's clock, as all times here",
    ),
    sa.Column("updated", sa.Double, nullable=False),
    sa.Column(
        "attempt",
        sa.Integer,
        nullable=False,
        doc="fencing token: the newest attempt, the only one that may write",
    ),
    sa.Column("lease_expires", sa.Double),
    sa.Column(
        "intervals", sa.Integer, nullable=False, doc="intervals recorded, number 0 not counted"
    ),
    sa.Column("progress", sa.Double, nullable=False),
    sa.Column("checkpoint", sa.Text),
    sa.Column("policy", sa.Text),
    sa.Column("model", sa.Text, doc="folder of the exported model"),
    _one_of("status", STATUSES),
    *_counts("attempt", "intervals", "created", "updated"),
    sa.CheckConstraint("progress BETWEEN 0 AND 1", name="progress_share"),
    sa.CheckConstraint("max_attempts >= 1", name="max_attempts_positive"),
    sa.CheckConstraint(
        "(status = 'running') = (lease_expires IS NOT NULL)", name="lease_while_running"
    ),
)

attempts = sa.Table(
    "attempts",
    metadata,
    sa.Column("run_id", sa.ForeignKey("runs.id"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column(
        "key", sa.String(32), nullable=False, unique=True, doc="made by the worker before it asks"
    ),
    sa.Column("worker", sa.String(200), nullable=False),
    sa.Column("outcome", sa.String(16), nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column("started", sa.Double, nullable=False),
    sa.Column("heartbeat", sa.Double, nullable=False),
    sa.Column("ended", sa.Double),
    sa.Column("tokens", sa.BigInteger, nullable=False),
    sa.Column("flops", sa.Double, nullable=False),
    sa.Column("seconds", sa.Double, nullable=False),
    _one_of("outcome", OUTCOMES),
    *_counts("tokens", "flops", "seconds"),
    sa.CheckConstraint("number >= 1", name="number_positive"),
)

spaces = sa.Table(
    "spaces",
    metadata,
    sa.Column("digest", sa.String(64), primary_key=True),
    sa.Column("domains", sa.JSON, nullable=False),
)

intervals = sa.Table(
    "intervals",
    metadata,
    sa.Column("run_id", sa.ForeignKey("runs.id"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("space", sa.ForeignKey("spaces.digest"), nullable=False),
    sa.Column("mixture", sa.JSON(none_as_null=True)),
    sa.Column("signals", sa.JSON, nullable=False),
    sa.Column("metrics", sa.JSON, nullable=False),
    sa.Column("digest", sa.String(64), nullable=False, doc="sha256 of space, mixture and signals"),
    sa.ForeignKeyConstraint(["run_id", "attempt"], ["attempts.run_id", "attempts.number"]),
    sa.CheckConstraint("number >= 0", name="number_not_negative"),
    sa.CheckConstraint("(number = 0) = (mixture IS NULL)", name="mixture_but_at_the_start"),
)

requests = sa.Table(
    "requests",
    metadata,
    sa.Column("run_id", sa.ForeignKey("runs.id"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("action", sa.JSON, nullable=False),
    sa.Column("author", sa.String(200), nullable=False),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("interval", sa.Integer, doc="the first that it affects; none while it waits"),
    *_counts("created"),
    sa.CheckConstraint("number >= 1", name="number_positive"),
)

evaluations = sa.Table(
    "evaluations",
    metadata,
    sa.Column("model", sa.String(80), primary_key=True, doc="a run's id, or sha256: and a digest"),
    sa.Column("digest", sa.String(64), primary_key=True, doc="sha256 of what was asked"),
    sa.Column("task", sa.String(200), nullable=False),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("record", sa.JSON, nullable=False, doc="TaskScore.to_json"),
    *_counts("created"),
)

"""Runs, attempts, spaces and intervals."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "runs",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("cohort", sa.String(200), index=True),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("config", sa.JSON, nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("status", sa.String(16), nullable=False, index=True),
        sa.Column("reason", sa.Text),
        sa.Column("max_attempts", sa.Integer, nullable=False),
        sa.Column("created", sa.Double, nullable=False, index=True),
        sa.Column("updated", sa.Double, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("lease_expires", sa.Double),
        sa.Column("intervals", sa.Integer, nullable=False),
        sa.Column("progress", sa.Double, nullable=False),
        sa.Column("checkpoint", sa.Text),
        sa.Column("policy", sa.Text),
        sa.Column("model", sa.Text),
        sa.CheckConstraint(
            "status IN ('waiting', 'running', 'done', 'failed')", name="status_known"
        ),
        sa.CheckConstraint("attempt BETWEEN 0 AND 1e300", name="attempt_finite"),
        sa.CheckConstraint("intervals BETWEEN 0 AND 1e300", name="intervals_finite"),
        sa.CheckConstraint("created BETWEEN 0 AND 1e300", name="created_finite"),
        sa.CheckConstraint("updated BETWEEN 0 AND 1e300", name="updated_finite"),
        sa.CheckConstraint("progress BETWEEN 0 AND 1", name="progress_share"),
        sa.CheckConstraint("max_attempts >= 1", name="max_attempts_positive"),
        sa.CheckConstraint(
            "(status = 'running') = (lease_expires IS NOT NULL)", name="lease_while_running"
        ),
    )
    op.create_table(
        "attempts",
        sa.Column("run_id", sa.String(64), sa.ForeignKey("runs.id"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("key", sa.String(32), nullable=False, unique=True),
        sa.Column("worker", sa.String(200), nullable=False),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("started", sa.Double, nullable=False),
        sa.Column("heartbeat", sa.Double, nullable=False),
        sa.Column("ended", sa.Double),
        sa.Column("tokens", sa.BigInteger, nullable=False),
        sa.Column("flops", sa.Double, nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.CheckConstraint(
            "outcome IN ('running', 'done', 'failed', 'lost', 'released')", name="outcome_known"
        ),
        sa.CheckConstraint("tokens BETWEEN 0 AND 1e300", name="tokens_finite"),
        sa.CheckConstraint("flops BETWEEN 0 AND 1e300", name="flops_finite"),
        sa.CheckConstraint("seconds BETWEEN 0 AND 1e300", name="seconds_finite"),
        sa.CheckConstraint("number >= 1", name="number_positive"),
    )
    op.create_table(
        "spaces",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("domains", sa.JSON, nullable=False),
    )
    op.create_table(
        "intervals",
        sa.Column("run_id", sa.String(64), sa.ForeignKey("runs.id"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("space", sa.String(64), sa.ForeignKey("spaces.digest"), nullable=False),
        sa.Column("mixture", sa.JSON(none_as_null=True)),
        sa.Column("signals", sa.JSON, nullable=False),
        sa.Column("metrics", sa.JSON, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.ForeignKeyConstraint(["run_id", "attempt"], ["attempts.run_id", "attempts.number"]),
        sa.CheckConstraint("number >= 0", name="number_not_negative"),
        sa.CheckConstraint("(number = 0) = (mixture IS NULL)", name="mixture_but_at_the_start"),
    )


def downgrade() -> None:
    for table in ("intervals", "spaces", "attempts", "runs"):
        op.drop_table(table)

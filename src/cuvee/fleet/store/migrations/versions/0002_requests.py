"""Requests of operators to runs."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "requests",
        sa.Column("run_id", sa.String(64), sa.ForeignKey("runs.id"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("action", sa.JSON, nullable=False),
        sa.Column("author", sa.String(200), nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("interval", sa.Integer),
        sa.CheckConstraint("created BETWEEN 0 AND 1e300", name="created_finite"),
        sa.CheckConstraint("number >= 1", name="number_positive"),
    )


def downgrade() -> None:
    op.drop_table("requests")

"""Results of models on questions."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "evaluations",
        sa.Column("model", sa.String(80), primary_key=True),
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("task", sa.String(200), nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("record", sa.JSON, nullable=False),
        sa.CheckConstraint("created BETWEEN 0 AND 1e300", name="created_finite"),
    )


def downgrade() -> None:
    op.drop_table("evaluations")

"""Results of models on questions: `cuvee evaluate` writes them, `cuvee report` reads them."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from cuvee.core.errors import StoreError
from cuvee.evaluation.items import TaskScore
from cuvee.fleet.store.database import Database
from cuvee.fleet.store.schema import evaluations


def save_evaluations(database: Database, model: str, scores: Sequence[TaskScore]) -> None:
    """Record results of `model`. An earlier result on the same questions is replaced."""

    def work(connection: sa.Connection) -> None:
        now = database.now(connection)
        for score in scores:
            same = (evaluations.c.model == model) & (evaluations.c.digest == score.digest)
            connection.execute(sa.delete(evaluations).where(same))
            row = {"model": model, "digest": score.digest, "task": score.task, "created": now}
            connection.execute(sa.insert(evaluations).values(**row, record=score.to_json()))

    database.write(work)


def read_evaluations(database: Database, model: str) -> list[TaskScore]:
    """Return the results of `model`, oldest first. Raises `StoreError` for a damaged row."""
    query = sa.select(evaluations).where(evaluations.c.model == model)
    query = query.order_by(evaluations.c.created, evaluations.c.task)
    rows = database.read(lambda connection: connection.execute(query).all())
    try:
        return [TaskScore.from_json(row.record) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"an evaluation of {model} is damaged ({type(error).__name__}: {error}): run "
            "`cuvee evaluate` again"
        ) from error

"""`evaluation`: questions on which a run evaluates its model, for policies that read feedback."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol, Self, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cuvee.core.domain import Domain
from cuvee.core.errors import ConfigError
from cuvee.core.files import sha256_of
from cuvee.core.protocols import Policy

Files = Annotated[tuple[Path, ...], Field(min_length=1)]


@runtime_checkable
class ReadsFeedback(Policy, Protocol):
    """A policy that can use the model's answers to questions, and can also work without them.

    The run's configuration chooses the questions.
    """

    def with_evaluation(
        self, evaluation: Mapping[str, Sequence[str]] | None, share: float = 0.02
    ) -> Policy:
        """Return this policy with the questions in these files, or without questions for None."""
        ...

    def check(self, domains: tuple[Domain, ...]) -> None:
        """Raise `PolicyError` if the policy cannot steer a run on these domains."""


class Evaluation(BaseModel):
    """JSONL files of questions with reference answers for each field (`probes.questions`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    general: Files
    target: Files
    share: Annotated[float, Field(gt=0, le=1)] = 0.02
    """The highest cost of evaluation, as a share of the cost of training an interval."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, paths in self._fields.items():
            for path in paths:
                if not path.is_file():
                    raise ConfigError(f"evaluation.{name} names {path}, which is not a file")
        return self

    @property
    def _fields(self) -> dict[str, tuple[Path, ...]]:
        return {"general": self.general, "target": self.target}

    @property
    def files(self) -> dict[str, list[str]]:
        """The files' absolute paths: a worker process may have another working directory."""
        return {
            name: [str(path.absolute()) for path in paths] for name, paths in self._fields.items()
        }

    def identity(self) -> dict[str, Any]:
        """Hashes of the questions' content. Paths and order of the files are not part of it."""
        digests = {
            name: sorted(sha256_of(path) for path in paths) for name, paths in self._fields.items()
        }
        return {
            name: hashlib.sha256("".join(found).encode()).hexdigest()
            for name, found in digests.items()
        } | {"share": self.share}

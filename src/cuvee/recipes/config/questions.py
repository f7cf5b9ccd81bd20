"""`evaluation`: the questions that a run asks its model, for a saved policy that reads feedback."""

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
    """A policy that can be told how the model does on questions, and can do without. Which questions belongs to the run."""

    def evaluating(
        self, evaluation: Mapping[str, Sequence[str]] | None, share: float = 0.02
    ) -> Policy: ...

    def check(self, domains: tuple[Domain, ...]) -> None:
        """Raises `PolicyError` if it cannot steer a run on these."""


class Evaluation(BaseModel):
    """JSONL files of questions with reference answers for each field (see `probes.questions`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    general: Files
    target: Files
    share: Annotated[float, Field(gt=0, le=1)] = 0.02
    """The most that asking may cost, as a share of what training an interval costs."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, paths in self._fields.items():
            for path in paths:
                if not path.is_file():
                    raise ConfigError(f"evaluation.{name} names {path}, and there is no such file")
        return self

    @property
    def _fields(self) -> dict[str, tuple[Path, ...]]:
        return {"general": self.general, "target": self.target}

    @property
    def files(self) -> dict[str, list[str]]:
        """By their full paths: a process elsewhere has another working directory."""
        return {
            name: [str(path.absolute()) for path in paths] for name, paths in self._fields.items()
        }

    def identity(self) -> dict[str, Any]:
        """What is asked: places and order of the files decide nothing."""
        digests = {
            name: sorted(sha256_of(path) for path in paths) for name, paths in self._fields.items()
        }
        return {
            name: hashlib.sha256("".join(found).encode()).hexdigest()
            for name, found in digests.items()
        } | {"share": self.share}

"""The report of a labelling, `labels.json`: sizes, confusion, agreement and examples."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cuvee.core.domain import SPLITS, Role
from cuvee.core.errors import CorpusError
from cuvee.core.files import write_atomic
from cuvee.data.corpus.manifest import Sha256
from cuvee.data.label.writing import Labelled

REPORT = "labels.json"
FORMAT: Final = 1
_EXACT_DOCUMENTS = 10_000_000

Count = Annotated[int, Field(ge=0)]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Size(_Entry):
    """A number of documents and their bytes of text."""

    documents: Count = 0
    bytes: Count = 0


class Example(_Entry):
    """The beginning of a document, with its previous domain."""

    domain: str
    text: str


class Label(_Entry):
    """A new domain.

    `spelled` is the label before it was converted to a domain name. `target_share` is the share of
    its training bytes that comes from target domains. `words` distinguish a topic from the others,
    the strongest first.
    """

    name: str
    spelled: str
    role: Role
    train: Size
    valid: Size
    target_share: Annotated[float, Field(ge=0, le=1)]
    words: tuple[str, ...]
    examples: tuple[Example, ...]


class Agreement(_Entry):
    """The agreement of labels with the previous domains, over all documents.

    Homogeneity is the share of the previous domains' entropy that the labels explain, completeness
    the reverse (Rosenberg and Hirschberg 2007). Adjusted mutual information is 0 for random labels
    and 1 for identical partitions (Vinh et al. 2010). All are None if there is only one label or
    one domain.
    """

    adjusted_mutual_information: float | None
    homogeneity: float | None
    completeness: float | None


class Labels(_Entry):
    """The complete report.

    - `confusion`: documents by previous domain and label.
    - `left_out`: documents whose label has no training text, by label. They are in the folder
      `left_out`.
    - `labelled_from`: identifies sources and settings.
    """

    format: Literal[1] = FORMAT
    by: dict[str, Any]
    by_role: bool
    text_column: str
    labels: tuple[Label, ...]
    roles: dict[str, Role]
    confusion: dict[str, dict[str, Count]]
    agreement: Agreement
    left_out: dict[str, Count]
    bad_rows: Count
    labelled_from: Sha256

    @property
    def mixed(self) -> tuple[str, ...]:
        """The labels whose training text comes from both source and target domains."""
        return tuple(label.name for label in self.labels if 0 < label.target_share < 1)

    def write(self, folder: Path) -> None:
        """Write the report to `folder` atomically."""
        write_atomic(folder / REPORT, json.dumps(self.model_dump(mode="json"), indent=1) + "\n")


def read_labels(folder: Path) -> Labels:
    """Read the report in `folder`. Raises `CorpusError` if there is none of this format."""
    path = folder / REPORT
    try:
        return Labels.model_validate_json(path.read_bytes())
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise CorpusError(
            f"{path} is no report of this version of cuvee: {error.errors()[0]['msg']}; remove "
            f"{folder} and label again"
        ) from error


def make_report(
    found: Labelled,
    words: Mapping[str, list[str]],
    roles: Mapping[str, Role],
    *,
    by: dict[str, Any],
    by_role: bool,
    text_column: str,
    labelled_from: str,
) -> Labels:
    """Return the report on `found`.

    `roles` are those of the previous domains. `words` are by the spelling of a label.
    """
    trained, validated, tested = (_by_label(found.counts.get(split, {})) for split in SPLITS)
    nothing = Size()
    untrained = sorted((validated.keys() | tested.keys()) - trained.keys())
    confusion: dict[str, dict[str, int]] = {}
    for by_domain in found.counts.values():
        for domain, by_label in by_domain.items():
            row = confusion.setdefault(domain, {})
            for label, (documents, _) in by_label.items():
                row[label] = row.get(label, 0) + documents

    def label_of(name: str) -> Label:
        target_bytes = sum(
            cells[name][1]
            for domain, cells in found.counts["train"].items()
            if roles[domain] == "target" and name in cells
        )
        return Label(
            name=name,
            spelled=found.spelled[name],
            role="target" if target_bytes == trained[name].bytes else "source",
            train=trained[name],
            valid=validated.get(name, Size()),
            target_share=target_bytes / trained[name].bytes,
            words=tuple(words.get(found.spelled[name], ())),
            examples=tuple(
                Example(domain=domain, text=text) for _, domain, text in found.examples[name]
            ),
        )

    return Labels(
        by=by,
        by_role=by_role,
        text_column=text_column,
        labels=tuple(label_of(name) for name in sorted(trained)),
        roles={domain: roles[domain] for domain in sorted(confusion)},
        confusion={domain: dict(sorted(confusion[domain].items())) for domain in sorted(confusion)},
        agreement=agreement(confusion),
        left_out={
            name: validated.get(name, nothing).documents + tested.get(name, nothing).documents
            for name in untrained
        },
        bad_rows=len(found.bad_rows),
        labelled_from=labelled_from,
    )


def agreement(confusion: Mapping[str, Mapping[str, int]]) -> Agreement:
    """Return the agreement of two partitions of the same documents.

    `confusion` holds the counts by domain and label.
    """
    labels = sorted({label for row in confusion.values() for label in row})
    counts_DL = np.array(
        [[row.get(label, 0) for label in labels] for row in confusion.values()], dtype=np.int64
    )
    total = int(counts_DL.sum())
    domains_D = counts_DL.sum(1)
    labels_L = counts_DL.sum(0)
    mutual = _entropy(domains_D) + _entropy(labels_L) - _entropy(counts_DL.ravel())
    by_chance = _expected_information(counts_DL, total)
    mean = (_entropy(domains_D) + _entropy(labels_L)) / 2
    several = len(domains_D) > 1 and len(labels_L) > 1
    return Agreement(
        adjusted_mutual_information=(mutual - by_chance) / (mean - by_chance)
        if several and mean > by_chance
        else None,
        homogeneity=mutual / _entropy(domains_D) if several else None,
        completeness=mutual / _entropy(labels_L) if several else None,
    )


def _expected_information(counts_DL: npt.NDArray[np.int64], total: int) -> float:
    """Return the mutual information of random labels, in nats."""
    if total > _EXACT_DOCUMENTS:  # the exact sum takes gigabytes; the limit has seven right digits
        rows, columns = counts_DL.shape
        return float((rows - 1) * (columns - 1) / (2 * total))
    from sklearn.metrics.cluster import expected_mutual_information

    return float(expected_mutual_information(counts_DL, total))


def _entropy(counts: npt.NDArray[np.int64]) -> float:
    """Return the entropy of the distribution with these counts, in nats."""
    total = int(counts.sum())
    return math.log(total) - float(sum(c * math.log(c) for c in counts.tolist() if c)) / total


def _by_label(by_domain: Mapping[str, Mapping[str, list[int]]]) -> dict[str, Size]:
    """Return the size of each label, summed over domains."""
    sums: dict[str, list[int]] = {}
    for by_label in by_domain.values():
        for label, (documents, size) in by_label.items():
            cell = sums.setdefault(label, [0, 0])
            cell[0] += documents
            cell[1] += size
    return {
        label: Size(documents=documents, bytes=size) for label, (documents, size) in sums.items()
    }

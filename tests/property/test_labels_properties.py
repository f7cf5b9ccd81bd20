"""Any text becomes a valid file name that `build` reads back; agreement equals scikit-learn's."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_mutual_info_score, homogeneity_completeness_v_measure

from cuvee.core.mixture import NAME_PATTERN
from cuvee.data.ingest.sources.raw import find_sources
from cuvee.data.label.labelers import ByColumn, domain_name
from cuvee.data.label.labels import LabelSettings, label
from cuvee.data.label.report import agreement
from labelled_text import read_text


@given(st.text(max_size=60))
def test_names_are_names_or_nothing(text: str) -> None:
    name = domain_name(text)
    assert name == "" or (NAME_PATTERN.fullmatch(name[:64]) and not name.startswith("."))
    assert domain_name(name) == name


@given(st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,20}", fullmatch=True))
def test_names_that_are_fit_stay(name: str) -> None:
    assert domain_name(name) == name


_labels = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [
            "a.jsonl",
            "x-00001-of-00002",
            "random-07",
            "7.00001",
            "_0123",
            ".hidden",
            "..",
            "-",
            "a/b",
            "../../etc",
            "table.json",
            "CON",
            "é",
        ]
    ),
    st.integers(),
    st.none(),
    st.lists(st.integers()),
)


@settings(max_examples=25)
@given(st.lists(_labels, min_size=1, max_size=12))
def test_whatever_labels_say_build_finds_each_document_under_its_label(
    values: list[object],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "in.jsonl"
        spelled: dict[str, object] = {}
        rows = []
        for i, value in enumerate(values):
            name = domain_name(str(value))
            if spelled.setdefault(name, str(value)) == str(
                value
            ):  # labels that would be one domain have a test of their own
                rows.append({"text": f"text {i}", "k": value})
        place.write_text(
            "\n".join(json.dumps(row) for row in [*rows, {"text": "sure", "k": "zz-sure"}])
        )
        out = Path(folder) / "out"
        settings = LabelSettings(valid_share=0, test_share=0)
        found = label([place], out, ByColumn("k"), settings, workers=1)
        sources, _ = find_sources([out])
        assert {source.domain for source in sources} == {row.name for row in found.labels}
        documents = [(domain, row) for _, domain, row in read_text(out)]
        assert len(documents) + found.bad_rows == len(rows) + 1
        assert all(domain == domain_name(str(row["k"])) for domain, row in documents)
        written = {path.resolve() for path in Path(folder).rglob("*") if path.is_file()}
        assert all(
            path.is_relative_to(out.resolve()) or path == place.resolve() for path in written
        )


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=2, max_size=60))
def test_agreement_is_that_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    confusion: dict[str, dict[str, int]] = {}
    for domain, name in pairs:
        row = confusion.setdefault(str(domain), {})
        row[str(name)] = row.get(str(name), 0) + 1
    domains, names = zip(*pairs, strict=True)
    found = agreement(confusion)
    if len(set(domains)) == 1 or len(set(names)) == 1:
        assert found.adjusted_mutual_information is None
        return
    homogeneity, completeness, _ = homogeneity_completeness_v_measure(domains, names)
    assert found.homogeneity == pytest.approx(homogeneity, abs=1e-9)
    assert found.completeness == pytest.approx(completeness, abs=1e-9)
    if found.adjusted_mutual_information is not None:
        assert found.adjusted_mutual_information == pytest.approx(
            adjusted_mutual_info_score(domains, names), abs=1e-6
        )

"""Whatever a questions file holds, it is read or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cuvee.core.errors import CorpusError
from cuvee.probes.questions import Question, read_questions

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
ROW = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(("prompt", "question", "choices", "answer", "text"), JSON)
    | {"subject": JSON},
)


def read_or_refuse(path: Path) -> list[Question]:
    refused = ""
    try:
        return read_questions(path)
    except CorpusError as error:
        refused = str(error)
    assert str(path) in refused
    return []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ROW | JSON, min_size=1, max_size=4))
def test_any_json_is_read_or_refused_with_file_and_line(tmp_path: Path, rows: list[Any]) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    for question in read_or_refuse(path):
        assert question.prompt
        assert question.answers[question.reference]
        question.answers[question.reference].encode()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(tmp_path: Path, data: Any) -> None:
    path = tmp_path / "q.jsonl"
    path.write_bytes(data)
    read_or_refuse(path)

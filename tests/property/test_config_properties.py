"""Any content of a configuration file gives a configuration or a helpful `ConfigError`."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cuvee.core.errors import ConfigError
from cuvee.recipes.config.schema import CompareConfig, RunConfig, TrainConfig, parse
from cuvee.recipes.config.yaml_file import override, parse_yaml

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
KEYS = st.sampled_from(
    [
        *TrainConfig.model_fields,
        *CompareConfig.model_fields,
        "steps",
        "betas",
        "learning_rate",
        "floor",
        "label",
        "weights",
        "x",
    ]
)
VALUES = st.recursive(
    SCALARS | st.sampled_from(["odm", "given", "ac_odm", "natural"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.binary(max_size=200) | st.text(alphabet="ab:{}[],&*!|>-#'\"\n 01.e", max_size=80))
def test_any_bytes_are_yaml_or_are_refused(data: bytes | str) -> None:
    try:
        parse_yaml(data, "mine.yaml")
    except ConfigError as error:
        said = str(error)
    else:
        return
    assert said.startswith("mine.yaml")


@settings(max_examples=200)
@given(st.dictionaries(KEYS, VALUES, max_size=5), st.sampled_from([TrainConfig, CompareConfig]))
def test_any_content_is_a_configuration_or_is_refused(
    content: dict[str, Any], kind: type[RunConfig]
) -> None:
    try:
        parse(kind, {"corpus": "corpus", **content}, "mine.yaml")
    except ConfigError as error:
        said = str(error)
    else:
        return
    assert said.startswith("mine.yaml: ")
    assert len(said) > len("mine.yaml: ")


@given(
    st.floats(1e-9, 1e3),
    st.integers(1, 10**9),
    st.dictionaries(
        st.from_regex(r"[A-Za-z0-9._-]{1,12}", fullmatch=True),
        st.floats(0, 1),
        min_size=1,
        max_size=4,
    ),
)
def test_a_right_configuration_survives_being_written_down(
    rate: float, steps: int, floor: dict[str, float]
) -> None:
    content = {
        "corpus": "c",
        "train": {"learning_rate": rate, "steps": steps},
        "guard": {"floor": floor},
    }
    config = parse(TrainConfig, content, "mine.yaml")
    written = json.dumps(
        config.model_dump(mode="json", exclude={"policy": True, "train": {"seed"}})
    )
    again = parse(TrainConfig, parse_yaml(written, "written.yaml"), "written.yaml")
    assert again.identity("f") == config.identity("f")
    assert again.train == config.train
    assert json.loads(json.dumps(config.identity("f"))) == config.identity("f")


@given(st.lists(st.sampled_from(["train", "guard", "a", "b"]), min_size=1, max_size=4), VALUES)
@example(["a"], "\U00010000")
@example(["a"], "\0")
@example(["a"], "\\u0000")
def test_an_override_is_read_as_it_was_written(path: list[str], value: Any) -> None:
    text = json.dumps(value)
    content: dict[str, Any] = {}
    if re.search(r"(?<!\\)(\\\\)*\\u0000", text):
        with pytest.raises(ConfigError, match="contains NUL"):
            override(content, [f"{'.'.join(path)}={text}"])
        return
    override(content, [f"{'.'.join(path)}={text}"])
    for key in path:
        content = content[key]
    if "NaN" not in text and "Infinity" not in text:
        assert json.loads(json.dumps(content)) == json.loads(text)

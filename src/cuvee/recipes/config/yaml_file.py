"""Reads YAML configurations of unknown origin safely.

Size, depth and expansion are limited. Only plain values are allowed, and no key may occur twice.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from cuvee.core.errors import ConfigError

MAX_BYTES = 1_000_000
MAX_VALUES = 100_000
MAX_DEPTH = 50
MAX_LENGTH = 10_000  # of one value; the time to parse a number grows with its length squared


class _Loader(yaml.SafeLoader):
    """`SafeLoader` (plain values only) that also reads 1e-3 as a number; YAML 1.1 needs 1.0e-3."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in the file at `path`.

    Raises `ConfigError` if the file cannot be read or is not small, plain YAML.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"cannot read the configuration {path}: {error.strerror or error}"
        ) from error
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_BYTES:,} bytes: is it a configuration?")
    content = parse_yaml(data, str(path))
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path} contains {_kind(content)}: a configuration is a list of `key: value` lines"
        )
    return content


def parse_yaml(data: bytes | str, source: str) -> Any:
    """Return the value of YAML text. Error messages begin with `source`."""
    try:
        loader = _Loader(data)
        try:
            node = loader.get_single_node()
            if node is None:
                return {}
            _check(node, source, {}, 0)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(
            f"{source}{where}: {error.problem or error.context}; check the YAML there"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, OverflowError) as error:
        raise ConfigError(
            f"{source} is not readable as YAML: {' '.join(str(error).split())}"
        ) from error
    except RecursionError:
        raise ConfigError(
            f"{source} is nested deeper than {MAX_DEPTH} levels: is it a configuration?"
        ) from None


def _check(node: yaml.Node, source: str, sizes: dict[int, int], depth: int) -> int:
    """Return the number of values in `node` with all aliases expanded.

    Raises `ConfigError` for repeated keys, loops, too many values, and values too long or deep.
    """
    if id(node) in sizes:
        if sizes[id(node)] == 0:
            raise ConfigError(
                f"{source}: an alias (*) points to something that contains it; write the value out"
            )
        return sizes[id(node)]
    if depth > MAX_DEPTH:
        raise ConfigError(
            f"{source} is nested deeper than {MAX_DEPTH} levels: is it a configuration?"
        )
    if isinstance(node, yaml.ScalarNode) and len(node.value) > MAX_LENGTH:
        raise ConfigError(
            f"{source} has a value of {len(node.value):,} characters: is it a configuration?"
        )
    sizes[id(node)] = 0
    size = 1
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    line = key.start_mark.line + 1
                    raise ConfigError(
                        f"{source}, line {line}: the key {key.value!r} is given twice; keep one"
                    )
                seen.add(key.value)
            size += _check(key, source, sizes, depth + 1) + _check(value, source, sizes, depth + 1)
    elif isinstance(node, yaml.SequenceNode):
        size += sum(_check(item, source, sizes, depth + 1) for item in node.value)
    if size > MAX_VALUES:
        raise ConfigError(
            f"{source} expands to more than {MAX_VALUES:,} values: is it a configuration?"
        )
    sizes[id(node)] = size
    return size


def override(content: dict[str, Any], assignments: Sequence[str]) -> None:
    """Apply overrides such as `train.learning_rate=3e-3` to `content`; values are YAML."""
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise ConfigError(
                f"cannot understand {assignment!r}: an override is key=value, as in "
                "train.learning_rate=3e-3"
            )
        section = content
        for depth, key in enumerate(keys[:-1], start=1):
            inner = section.setdefault(key, {})
            if inner is None:
                inner = section[key] = {}
            if not isinstance(inner, dict):
                raise ConfigError(
                    f"cannot set {path}: {'.'.join(keys[:depth])} is {inner!r}, which has no keys"
                )
            section = inner
        section[keys[-1]] = (
            parse_yaml(text, f"the override {assignment!r}") if text.strip() else None
        )


def quoted(text: str) -> str:
    """Return `text` as a YAML value that reads as the same text, quoted where YAML needs it."""
    plain = re.fullmatch(r"[A-Za-z_./][A-Za-z0-9_./-]*", text) is not None
    return text if plain and parse_yaml(text, "") == text else json.dumps(text, ensure_ascii=False)


def _kind(value: object) -> str:
    return {list: "a list", str: "text", type(None): "nothing"}.get(
        type(value), f"the value {value!r}"
    )

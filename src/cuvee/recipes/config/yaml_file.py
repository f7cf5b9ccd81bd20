"""Reads YAML configurations of unknown origin safely.

Size, depth and expansion are limited. Only plain values are allowed, and no key may occur twice.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import yaml

from cuvee.core.errors import ConfigError
from cuvee.core.files import is_path

MAX_BYTES = 1_000_000
MAX_VALUES = 100_000
MAX_DEPTH = 50
_PART = re.compile(r"""(?:^|(?<=\.))(?:"([^"]+)"|'([^']+)'|([^."']*))(?=\.|$)""")
MAX_LENGTH = 10_000  # of one value; the time to parse a number grows with its length squared


_OTHER_BASE = re.compile(r"[-+]?0[box]")


class WrittenInt(int):
    """A number whose `str` is the text in the file, because a name may look like a number."""

    written: str

    def __str__(self) -> str:
        return self.written


class WrittenFloat(float):
    """As `WrittenInt`: the name 1e5 stays 1e5."""

    written: str

    def __str__(self) -> str:
        return self.written


class _Loader(yaml.SafeLoader):
    """`SafeLoader` (plain values only) with the words of YAML 1.2.

    `no`, `on` and dates are text, `true` and `false` are not, and 1e-3 is a number. Keys are text.
    """

    def construct_yaml_int(self, node: yaml.ScalarNode) -> WrittenInt:
        text = node.value.replace("_", "").lower()
        number = WrittenInt(int(text, 0 if _OTHER_BASE.match(text) else 10))
        number.written = node.value
        return number

    def construct_yaml_float(self, node: yaml.ScalarNode) -> WrittenFloat:
        number = WrittenFloat(super().construct_yaml_float(node))
        number.written = node.value
        return number


_OTHER_WORDS = (
    "tag:yaml.org,2002:bool",
    "tag:yaml.org,2002:int",  # in which 0100 is 64, and 1:30 is 90
    "tag:yaml.org,2002:timestamp",
)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag not in _OTHER_WORDS]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(
        r"^[-+]?(?:0[bB][01_]*[01]|0[oO][0-7_]*[0-7]|0[xX][0-9a-fA-F_]*[0-9a-fA-F]|\d[\d_]*)$", re.A
    ),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)


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


def _joined(text: str) -> str:
    """Join the halves of characters that JSON writes as two escapes, which YAML leaves apart."""
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:  # a half without the other
        return text


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
    if isinstance(node, yaml.ScalarNode):
        node.value = _joined(node.value)
        if not is_path(node.value):
            raise ConfigError(
                f"{source}, line {node.start_mark.line + 1}: {node.value[:40]!r} contains NUL or half "
                "of a character, which no name or path can contain"
            )
    sizes[id(node)] = 0
    size = 1
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                key.value = _joined(key.value)
                if key.tag != "tag:yaml.org,2002:merge":
                    key.tag = "tag:yaml.org,2002:str"
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


def override(
    content: dict[str, Any], assignments: Sequence[str], by_name: Collection[str] = ()
) -> None:
    """Apply overrides such as `train.learning_rate=3e-3` to `content`; values are YAML.

    A name may have dots if it is a key of `content` already, if it is in quotes, as in
    `method.weights."law.v1"=0.5`, or in a section of `by_name`, whose keys are names of domains.
    """
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        keys = _keys(path.strip(), content, by_name)
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
        section[keys[-1]] = _value(text, assignment) if text.strip() else None


def _value(text: str, assignment: str) -> Any:
    try:
        return parse_yaml(text, f"the override {assignment!r}")
    except ConfigError as error:
        raise ConfigError(
            f"{error}; an override with spaces needs quotes: 'objective={{web: 1}}'"
        ) from None


def _keys(path: str, content: Any, by_name: Collection[str]) -> list[str]:
    """Split the path of an override at its dots, except at those of names."""
    parts = [one or two or plain for one, two, plain in _PART.findall(path)]
    if ".".join(parts) != re.sub("[\"']", "", path):
        return [""]
    keys: list[str] = []
    while parts:
        longest = len(parts) if ".".join(keys) in by_name else 1
        known = content if isinstance(content, dict) else {}
        size = next((n for n in range(len(parts), 1, -1) if ".".join(parts[:n]) in known), longest)
        keys.append(".".join(parts[:size]))
        parts = parts[size:]
        content = known.get(keys[-1])
    return keys


def quoted(text: str) -> str:
    """Return `text` as a YAML value that reads as the same text, quoted where YAML needs it."""
    plain = re.fullmatch(r"[A-Za-z_./][A-Za-z0-9_./-]*", text) is not None
    # YAML 1.1, which other programs read, has more words.
    return text if plain and yaml.safe_load(text) == text else json.dumps(text, ensure_ascii=False)


def _kind(value: object) -> str:
    return {list: "a list", str: "text", type(None): "nothing"}.get(
        type(value), f"the value {value!r}"
    )

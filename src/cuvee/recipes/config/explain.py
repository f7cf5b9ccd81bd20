"""Turns pydantic's validation errors into sentences with the key, its value and the nearest key."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from cuvee.core.errors import nearest
from cuvee.core.renamed import new_name

_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
_MISSING = ("missing", "missing_argument", "missing_keyword_only_argument")
_PLAIN = (  # pydantic's words, and the words of a person who writes YAML
    (r"^Value error, ", ""),
    (r"^Input should be ", "it must be "),
    (r"a valid tuple|a valid list", "a list"),
    (
        r"a valid dictionary or instance of MethodChoice",
        "the name of a method or a section with `name: …`",
    ),
    (r"a valid dictionary or instance of PolicyChoice", "a policy's folder"),
    (r"a valid dictionary|a dictionary or an instance of \w+", "a section of `key: value` lines"),
    (r"a valid string", "text"),
    (r"^Input is not a valid path.*", "it must be a path"),
    (
        r"^String should match pattern .*",
        "it must be 1 to 64 letters, digits, dots, underscores or hyphens",
    ),
    (r"^\w+ should have at least (\d+) items? after validation.*", r"it must have at least \1"),
    (r", unable to parse string as an? \w+|, got a number with a fractional part", ""),
)


def explain(error: ValidationError, kind: type[Any], content: Any) -> str:
    """Return one clause per wrong key of `content`, which is not a valid `kind`.

    `kind` is a pydantic model or a dataclass.
    """
    unknown: list[str] = []
    wrong: dict[str, list[str]] = {}
    problems = error.errors()
    for problem in problems:
        if problem["type"] == "too_short" and any(
            _below(problem["loc"], other["loc"]) for other in problems
        ):
            continue  # there are enough items once these are right
        keys, section = _locate(problem["loc"], kind, content, problem["type"])
        if problem["type"] in _UNKNOWN:
            where = f" in {'.'.join(keys[:-1])}" if keys[:-1] else ""
            known = _sections(section)
            new = new_name(keys[-1], known)
            hint = f"; it is called {new!r} now" if new else nearest(keys[-1], known)
            unknown.append(f"unknown key {keys[-1]!r}{where}{hint}")
        elif problem["type"] in _MISSING:
            wrong.setdefault(f"{'.'.join(keys)} is missing", [])
        else:
            what = f"{'.'.join(keys) or 'the configuration'} is {problem['input']!r}"
            wrong.setdefault(what, []).append(_plain(problem["msg"]) + _dots(problem, keys))
    return "; ".join(
        [*unknown, *(f"{what}: {' or '.join(why)}" if why else what for what, why in wrong.items())]
    )


def by_name(kind: type[Any] | None, path: str = "") -> set[str]:
    """Return the dotted paths of all sections of `kind` that map names to numbers."""
    hints = _hints(kind)
    found = {f"{path}{key}" for key, hint in hints.items() if _maps_to_numbers(hint)}
    for key, section in _sections(kind).items():
        found |= by_name(section, f"{path}{key}.")
    return found


def _maps_to_numbers(annotation: Any) -> bool:
    origin = typing.get_origin(annotation)
    parts = typing.get_args(annotation)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return parts[1] in (int, float) or float in typing.get_args(parts[1])
    return any(_maps_to_numbers(part) for part in parts)


def _below(place: tuple[int | str, ...], other: tuple[int | str, ...]) -> bool:
    return len(other) > len(place) and other[: len(place)] == place


def _dots(problem: Any, keys: Sequence[str]) -> str:
    """A hint if a name with dots was taken for a path."""
    value = problem["input"]
    if not isinstance(value, dict) or len(value) != 1 or not problem["type"].startswith("float"):
        return ""
    name = ".".join([keys[-1], *map(str, value)])
    return f'; on the command line, write a name with dots in quotes: "{name}"=…'


def _plain(message: str) -> str:
    for pattern, words in _PLAIN:
        message = re.sub(pattern, words, message)
    return message


def _locate(
    location: tuple[int | str, ...], kind: type[Any], content: Any, problem: str
) -> tuple[list[str], type[Any] | None]:
    """Return the keys that lead to a problem and the section that contains it.

    A part of pydantic's location that is not a key of `content` names an alternative of a union,
    unless a key is missing.
    """
    keys: list[str] = []
    section: type[Any] | None = kind
    for depth, part in enumerate(location, start=1):
        within = (
            part in content
            if isinstance(content, dict)
            else isinstance(content, list) and isinstance(part, int)
        )
        if not within and not (problem in _MISSING and depth == len(location)):
            continue
        keys.append(str(part))
        if within and depth < len(location):
            content = content[part]
            section = section if isinstance(part, int) else _sections(section).get(part)
    return keys, section


def _sections(kind: type[Any] | None) -> dict[str, type[Any] | None]:
    """Return each key of `kind` with the model or dataclass of its value, if any."""
    return {name: _section(hint) for name, hint in _hints(kind).items()}


def _hints(kind: type[Any] | None) -> dict[str, Any]:
    if kind is None:
        return {}
    if issubclass(kind, BaseModel):
        return {name: field.annotation for name, field in kind.model_fields.items()}
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _section(annotation: Any) -> type[Any] | None:
    """Return the first model or dataclass in a type annotation."""
    if isinstance(annotation, type) and (
        issubclass(annotation, BaseModel) or dataclasses.is_dataclass(annotation)
    ):
        return annotation
    return next((found for part in typing.get_args(annotation) if (found := _section(part))), None)

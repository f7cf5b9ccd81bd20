"""Names of domains: which are valid, and how those of sources are renamed."""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from cuvee.core.errors import CorpusError
from cuvee.core.mixture import NAME_PATTERN

RULE = "use 1 to 64 letters, digits, dots, underscores or hyphens, and not dots alone"
_MOST = 64
_SHOWN = 200


def is_domain_name(name: Any) -> bool:
    """Whether `name` is a string that a domain may have as its name.

    Its files are called after it, so "." and ".." are not allowed.
    """
    return isinstance(name, str) and bool(NAME_PATTERN.fullmatch(name) and name.strip("."))


def check_domain_name(name: Any, place: str) -> str:
    """Return `name`. Raises `CorpusError`, naming `place`, if it is not a valid domain name."""
    if not is_domain_name(name):
        raise CorpusError(f"{place} gives the domain name {name!r}: {RULE}{rename_hint(name)}")
    return str(name)


def rename_hint(name: Any) -> str:
    """Return the end of a message about the invalid `name`: the option that renames it."""
    if not isinstance(name, str) or len(name) > _SHOWN or not name.isprintable():
        return ""
    return f", or rename it with --rename {shlex.quote(f'{name}={suggested_name(name)}')}"


def suggested_name(name: str) -> str:
    """Return a valid name like `name`: letters lose their accents, and "-" replaces the rest.

    suggested_name("Droit civil français")  # "Droit-civil-francais"
    """
    plain = "".join(
        letter
        for letter in unicodedata.normalize("NFKD", name)
        if not unicodedata.combining(letter)
    )
    short = re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("-")[:_MOST]
    return short if is_domain_name(short) else "domain"


def parse_renames(options: Iterable[str]) -> dict[str, str]:
    """Return the new names by old name from options "OLD=NEW". Raises `CorpusError`."""
    renames: dict[str, str] = {}
    for option in options:
        old, equals, new = option.rpartition("=")
        if not equals or not old:
            raise CorpusError(f"--rename {option!r}: write OLD=NEW")
        if renames.setdefault(old, new) != new:
            raise CorpusError(f"--rename gives {old!r} two new names: {renames[old]} and {new}")
    return renames


def parse_columns(options: Iterable[str]) -> tuple[str, dict[str, str]]:
    """Return the text column, and those of single domains, from options "NAME" and "DOMAIN=NAME".

    Raises `CorpusError` if one is given twice.
    """
    columns: dict[str, str] = {}
    for option in options:
        domain, equals, column = option.partition("=")
        if not (equals and column and is_domain_name(domain)):
            domain = ""
            column = option
        if columns.setdefault(domain, column) != column:
            of = f" of {domain}" if domain else ""
            raise CorpusError(
                f"--text-column gives two columns{of}, {columns[domain]} and {column}: give one, or "
                "DOMAIN=NAME for each domain"
            )
    return columns.pop("", "text"), columns


def checked_renames(renames: Mapping[str, str]) -> dict[str, str]:
    """Return `renames` with composed letters as keys. Raises `CorpusError` for a bad new name."""
    for old, new in renames.items():
        if not is_domain_name(new):
            raise CorpusError(f"{old!r} cannot be renamed to {new!r}: {RULE}")
    return {unicodedata.normalize("NFC", old): new for old, new in renames.items()}


def renamed(name: Any, renames: Mapping[str, str]) -> Any:
    """Return the new name of `name` by `checked_renames`, or `name` if it has none."""
    if not renames or not isinstance(name, str):
        return name
    return renames.get(unicodedata.normalize("NFC", name), name)


def check_all_used(
    by_domain: Mapping[str, str], names: Collection[str], what: str = "to rename"
) -> None:
    """Raise `CorpusError` if a key of an option by domain is not one of `names`."""
    known = sorted({unicodedata.normalize("NFC", name) for name in names})
    for name in by_domain:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the domains are {', '.join(known)}"
            raise CorpusError(f"no domain {name!r} {what}; {hint}")

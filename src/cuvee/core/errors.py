"""Errors that a user can cause. Each message names the offending value and the remedy.

Broken internal invariants are assertions, not `CuveeError`s.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable
from importlib import metadata

_SPACES = "\u00a0\u3000"  # no-break and ideographic


class CuveeError(Exception):
    """A mistake that the user can fix. The command line prints the message without a traceback."""


class MixtureError(CuveeError):
    """Weights that are not a point on the simplex, or that name the wrong domains."""


class SignalError(CuveeError):
    """A measurement that is not finite and was not declared absent."""


class CorpusError(CuveeError):
    """A corpus, a raw source or a domain that cannot be used as requested."""


class ShardError(CorpusError):
    """A `.bin`/`.idx` file that is truncated, inconsistent or different from its manifest entry."""


class FingerprintMismatch(CorpusError):
    """State saved on one corpus was loaded on another. The message holds both fingerprints."""


class CorpusExhausted(CorpusError):
    """Every domain has reached its epoch cap, so no window is left to draw."""


class ConfigError(CuveeError):
    """A configuration with an unknown key, a value out of range or a missing file."""


class PolicyError(CuveeError):
    """A policy that cannot steer this run, or a policy file that cannot be read."""


class CheckpointError(CuveeError):
    """A checkpoint that is incomplete, was altered, or belongs to a different run."""


class StoreError(CuveeError):
    """A run store that cannot be reached, has another version, or rejected a write."""


class TrainingError(CuveeError):
    """A run that cannot continue: non-finite loss, out of memory, ranks that disagree."""


class DivergedError(TrainingError):
    """A run whose loss or gradient is not finite."""


def printable(text: str, keep: str = "\n\t") -> str:
    """Return `text` with control, format and surrogate characters escaped, as in `\\x1b`.

    Such characters can move the cursor, change colours, reverse text or be invisible. Characters in
    `keep` are not escaped.
    """
    if text.isprintable() or text.translate(dict.fromkeys(map(ord, keep))).isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in keep or c in _SPACES else c.encode("unicode_escape").decode()
        for c in text
    )


def one_line(text: str) -> str:
    """`printable` on one line, so that no text can imitate another line of a log."""
    return printable(text, keep="")


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a hint for a misspelled `word`.

    The hint is "; did you mean …?" with the closest known word, or a list of all known words if
    none is close, or "" if there are none.

        >>> nearest("mahts", ["code", "maths"])
        "; did you mean 'maths'?"
        >>> nearest("law", ["code", "maths"])
        '; choose from code, maths'
    """
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    if len(known) == 1:
        return f"; there is only {known[0]}"
    return f"; choose from {', '.join(known)}" if known else ""


def packages_of(extra: str) -> list[str]:
    """Return what one of cuvee's extras requires, as pip takes it, or [] if there is none.

    The requirements are those of the installed distribution of cuvee.

        >>> packages_of("ray")
        ['ray>=2.40']
    """
    from packaging.requirements import Requirement

    try:
        needed = [Requirement(line) for line in metadata.requires("cuvee") or ()]
    except metadata.PackageNotFoundError:  # the code was copied, not installed
        return []
    found = []
    for one in needed:
        if one.marker and not one.marker.evaluate() and one.marker.evaluate({"extra": extra}):
            one.marker = None
            found.append(str(one))
    return sorted(found)


def pip_install(extra: str) -> str:
    """Return the command that installs what one of cuvee's extras requires.

    It names the packages themselves, because cuvee is on no package index: so it works for an
    installation from a checkout and for one from a wheel. If cuvee is not installed, its code is
    a checkout, and the command is for its folder.

        >>> pip_install("ray")
        "pip install 'ray>=2.40'"
    """
    packages = packages_of(extra)
    return f"pip install {shlex.join(packages or ['-e', f'.[{extra}]'])}"

"""Where text lies: on this machine, or elsewhere at a URL that fsspec reads.

A URL such as `s3://bucket/text` becomes a path with the interface of `pathlib.Path`, so the modules
that find and read files need not know the difference. Files are read in pieces, never as a whole.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from cuvee.core.errors import CorpusError, pip_install

_URL = re.compile(r"[a-z0-9]{2,}://?")  # a path object keeps one slash of two


def is_url(place: Path | str) -> bool:
    """Whether `place` is a URL, or a path object that was made from one."""
    return _URL.match(str(place)) is not None


def path_of(place: Path | str) -> Path:
    """Return the path of a local place or of a URL.

    Raises `CorpusError` for a URL that cannot be reached or that contains a secret: URLs are shown
    in messages.
    """
    if not is_url(place):
        return Path(place)
    scheme, _, rest = str(place).partition(":")
    if isinstance(place, Path) or not rest.startswith("//"):
        raise CorpusError(f"{place} is a URL that lost a slash: give it as a string")
    parts = urlsplit(str(place))
    if parts.password is not None or parts.query or (parts.username and parts.scheme != "hf"):
        raise CorpusError(
            f"a {scheme} URL has a user, a password or a query, which may be a secret: give the "
            f"URL without it, and credentials in the environment, where the package for {scheme} "
            "reads them"
        )
    return _reached(str(place), scheme)


def _reached(url: str, scheme: str) -> Path:
    try:
        from upath import UPath
    except ImportError:
        raise CorpusError(
            f"{url} is not on this machine: copy it here; or, to read it there, run "
            f"`{pip_install('cloud')}` and install fsspec's package for {scheme} (s3fs for s3, "
            "gcsfs for gs)"
        ) from None
    try:
        path = UPath(url)
        path.exists()
    except Exception as error:  # each file system has errors of its own
        raise CorpusError(
            f"{url} cannot be reached ({type(error).__name__}: {error}): check the URL, fsspec's "
            f"package for {scheme} and the credentials in the environment, or copy the text here"
        ) from error
    return cast(Path, path)


def open_place(path: Path) -> Any:
    """Open a file for reading bytes, without a buffer if it is local."""
    return open(path, "rb", buffering=0) if isinstance(path, Path) else path.open("rb")

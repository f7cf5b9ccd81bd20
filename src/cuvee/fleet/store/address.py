"""The address of a store: a path or a database URL, shown without its secrets."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from cuvee.core.errors import StoreError
from cuvee.core.files import is_path, read_bounded

ENVIRONMENT = "CUVEE_STORE"
INSECURE = "CUVEE_STORE_INSECURE"

_NETWORK_FILE_SYSTEM = re.compile(
    r"(fuse\.)?(ceph|gcsfuse|glusterfs|juicefs|s3fs|sshfs)|9p|afs|beegfs|cifs|gpfs|lustre"
    r"|nfs4?|orangefs|smb2|smb3|smbfs"
)
_ENCRYPTED = frozenset({"require", "verify-ca", "verify-full"})
_HARMLESS = frozenset({"sslmode", "connect_timeout", "application_name"})
_LOOPBACK = frozenset({"", "localhost", "127.0.0.1", "::1"})
_SQLITE = b"SQLite format 3\0"
_MOST_BYTES = 1 << 16  # of a file with a URL


@dataclass(frozen=True)
class Address:
    """The address of a store.

    `url` contains no secret. `secrets` are the connection options, including user and password; no
    repr shows them. `shown` is for messages.
    """

    url: URL
    shown: str
    secrets: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def is_sqlite(self) -> bool:
        return self.url.get_backend_name() == "sqlite"

    def scrub(self, text: str) -> str:
        """Return `text` with every secret of this address replaced by "***"."""
        secrets = {str(value) for name, value in self.secrets.items() if name not in _HARMLESS}
        for secret in sorted(
            (secret for secret in secrets if len(secret) > 2), key=len, reverse=True
        ):
            text = text.replace(secret, "***")
        return text


def find_address(given: str | Path | None) -> Address:
    """Return the address of the store that `given` names.

    `given` is a path, `sqlite:///…`, `postgresql://…`, or `@FILE`, whose first line is one of
    these. None means the environment variable CUVEE_STORE, which keeps passwords out of command
    lines. Raises `StoreError`; its messages never contain a URL's user, password or query.
    """
    text = str(given) if given is not None else os.environ.get(ENVIRONMENT, "")
    if text.startswith("@"):
        text = _first_line(Path(text[1:]))
    if not text:
        raise StoreError(
            f"no store was given: name a file such as runs/store.sqlite, or set {ENVIRONMENT}"
        )
    if "://" not in text:
        return _sqlite(Path(text))
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise StoreError(
            "the store's URL cannot be read: use sqlite:///PATH or postgresql://HOST/DATABASE"
        ) from None
    if url.drivername == "sqlite":
        if not url.database or url.database == ":memory:" or url.query:
            raise StoreError(
                "a SQLite store is a plain file: use sqlite:///PATH with a path and without options"
            )
        return _sqlite(Path(url.database))
    if url.drivername in ("postgresql", "postgres"):
        return _postgresql(url)
    raise StoreError(
        f"{url.drivername!r} is no driver for a store: use sqlite:///PATH or "
        "postgresql://HOST/DATABASE"
    )


def _first_line(path: Path) -> str:
    try:
        return read_bounded(path, _MOST_BYTES).decode().strip().splitlines()[0]
    except (OSError, ValueError, IndexError) as error:
        raise StoreError(
            f"{path} should hold the store's URL in its first line ({type(error).__name__})"
        ) from None


def _sqlite(path: Path) -> Address:
    path = path.expanduser().absolute()
    if not is_path(str(path)) or (path.exists() and not path.is_dir() and not path.is_file()):
        raise StoreError(f"{path} cannot be a store: name a plain file, such as runs/store.sqlite")
    if path.is_dir():
        raise StoreError(f"{path} is a folder: name a file in it, such as {path / 'store.sqlite'}")
    _check_header(path)
    kind = file_system_of(path)
    if kind and _NETWORK_FILE_SYSTEM.fullmatch(kind):
        raise StoreError(
            f"{path} lies on a network file system ({kind}), where SQLite's locks do not hold: "
            "use a local disk, or PostgreSQL for several hosts"
        )
    return Address(URL.create("sqlite", database=str(path)), shown=str(path))


def _check_header(path: Path) -> None:
    """Raise `StoreError` for a file of something else: SQLite writes over a short one."""
    try:
        with path.open("rb") as file:
            header = file.read(len(_SQLITE))
    except OSError:  # a new file, or SQLite says what is wrong
        return
    if header and header != _SQLITE:
        raise StoreError(f"{path} is not a database: give a file that cuvee wrote, or a new name")


def file_system_of(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str | None:
    """Return the type of the file system that `path` is on, or None if unknown (not Linux)."""
    if not mounts.exists():
        return None
    real = path.resolve()
    best = -1
    kind = None
    try:
        lines = mounts.read_text().splitlines()
    except OSError:  # such as too many open files; opening the database says so
        return None
    for line in lines:
        before, _, after = line.partition(" - ")
        # A blank in a path is written as \040.
        mounted_at = Path(before.split()[4].encode().decode("unicode_escape"))
        depth = len(mounted_at.parts)
        # Of two mounts on one point, the later one is visible.
        if depth >= best and real.is_relative_to(mounted_at):
            best = depth
            kind = after.split()[0]
    return kind


def _postgresql(url: URL) -> Address:
    options = {
        name: value if isinstance(value, str) else ",".join(value)
        for name, value in url.query.items()
    }
    hosts = ",".join(filter(None, (url.host, options.get("host"), options.get("hostaddr"))))
    hosts = hosts or ",".join(
        filter(None, (os.environ.get(name) for name in ("PGHOST", "PGHOSTADDR", "PGSERVICE")))
    )
    remote = [
        host for host in hosts.split(",") if host not in _LOOPBACK and not host.startswith("/")
    ]
    exposed = bool(remote or "service" in options) and not os.environ.get(INSECURE)
    if exposed and options.setdefault("sslmode", "require") not in _ENCRYPTED:
        raise StoreError(
            f"sslmode={options['sslmode']} would send runs and password in the clear to another "
            "host: use "
            f"sslmode=require or verify-full, or set {INSECURE}=1 if the network itself is private"
        )
    secrets: dict[str, Any] = dict(options)
    if url.username is not None:
        secrets["user"] = url.username
    if url.password is not None:
        secrets["password"] = str(url.password)
    bare = URL.create("postgresql+psycopg", host=url.host, port=url.port, database=url.database)
    place = f"{url.host or ''}{f':{url.port}' if url.port else ''}/{url.database or ''}"
    return Address(
        bare, shown=f"postgresql://{'***@' if url.username else ''}{place}", secrets=secrets
    )

"""Notices what data must never cause: programs, sockets, imports and writes elsewhere.

An audit hook sees these calls however they are reached. It cannot be removed, so it belongs in a
process of its own. It counts between `watch` and `ignore`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

_RUNS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn",
         "pickle.find_class", "ctypes.dlopen", "code.__new__")  # fmt: skip
_CONNECTS = ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto", "urllib.")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Canary:
    """`runs`, `connects` and `writes` list what was seen, one line each."""

    def __init__(self, inside: Path) -> None:
        self.runs: list[str] = []
        self.connects: list[str] = []
        self.writes: list[str] = []
        self._inside = f"{os.path.realpath(inside)}/"
        self._watching = False
        self._content = b""
        sys.addaudithook(self._hear)

    @property
    def sung(self) -> int:
        return len(self.runs) + len(self.connects) + len(self.writes)

    def watch(self, content: bytes) -> None:
        """Begin to count. `content` is the input: an import counts if the input names it."""
        self._content = content
        self._watching = True

    def ignore(self) -> None:
        self._watching = False

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._watching:
            return
        if event.startswith(_RUNS) or (event == "import" and self._named(str(arguments[0]))):
            self.runs.append(f"{event} {arguments[:1]}")
        elif event.startswith(_CONNECTS):
            self.connects.append(f"{event} {arguments[1:]}")
        elif event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES:
            path = os.path.realpath(os.fsdecode(arguments[0])) if _is_path(arguments[0]) else ""
            if path and not path.startswith((self._inside, "/dev/")):
                self.writes.append(path)

    def _named(self, module: str) -> bool:
        return module.encode() in self._content and not module.startswith("cuvee")


def _is_path(place: Any) -> bool:
    return isinstance(place, (str, bytes, os.PathLike))

"""A real PostgreSQL server for tests and benchmarks.

It runs in a temporary folder on a free loopback port and is removed afterwards.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import select
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path


def find_binaries() -> Path | None:
    """Return the folder with the programs of the newest installed server, or None."""
    packaged = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3])
    )
    on_path = shutil.which("initdb")
    if packaged:
        return packaged[-1].parent
    return Path(on_path).resolve().parent if on_path else None


class PostgresServer:
    """A running server. `url` is that of its database "cuvee" and includes the password."""

    def __init__(self, folder: Path, binaries: Path) -> None:
        self._folder = folder
        self._binaries = binaries
        self.data = folder / "data"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.password = "canary-password"
        (folder / "password").write_text(self.password)
        if os.getuid() == 0:  # the server refuses to run as root
            owner = pwd.getpwnam("postgres")
            for path in (folder, folder / "password"):
                os.chown(path, owner.pw_uid, owner.pw_gid)
        self._run(
            "initdb",
            *("-D", str(self.data), "-U", "cuvee", "--pwfile", str(folder / "password")),
            *("-A", "scram-sha-256", "-E", "UTF8", "--locale=C"),
        )
        self.start()
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "cuvee", "cuvee")

    @property
    def url(self) -> str:
        return f"postgresql://cuvee:{self.password}@127.0.0.1:{self.port}/cuvee"

    def start(self) -> None:
        options = (
            f"-p {self.port} -c listen_addresses=127.0.0.1 "
            f"-c unix_socket_directories={self._folder}"
        )
        self._run(
            "pg_ctl",
            "-D",
            str(self.data),
            "-l",
            str(self._folder / "log"),
            "-o",
            options,
            "-w",
            "start",
        )

    def stop(self, mode: str = "fast") -> None:
        """Stop with a mode of pg_ctl: "fast" ends every session, "immediate" is a crash."""
        self._run("pg_ctl", "-D", str(self.data), "-m", mode, "-w", "stop")

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._binaries / program), *arguments]
        if os.getuid() == 0:
            command = [
                "setpriv",
                "--reuid=postgres",
                "--regid=postgres",
                "--clear-groups",
                *command,
            ]
        environment = {
            "PATH": os.environ.get("PATH", ""),
            "LC_ALL": "C",
            "PGPASSWORD": self.password,
        }
        # Not a pipe, which would never end: the server keeps pg_ctl's output open.
        with tempfile.TemporaryFile("w+") as output:
            result = subprocess.run(
                command,
                cwd=self._folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                timeout=120,
            )
            output.seek(0)
            if result.returncode:
                raise RuntimeError(f"{program} failed: {output.read()}")


@contextlib.contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """Start a server for the block. Raises `FileNotFoundError` if none is installed."""
    binaries = find_binaries()
    if binaries is None:
        raise FileNotFoundError("no PostgreSQL server (initdb) is installed")
    with tempfile.TemporaryDirectory(prefix="cuvee-postgres-", dir="/tmp") as name:
        os.chmod(name, 0o755)
        server = PostgresServer(Path(name), binaries)
        try:
            yield server
        finally:
            server.stop("immediate")


class LossyLink:
    """A relay to a server on this host that loses answers.

    For every `lose_every`-th COMMIT, the server commits, but its answer does not arrive and the
    connection breaks. `lost` counts these cases.
    """

    def __init__(self, server_port: int, lose_every: int) -> None:
        self._server_port = server_port
        self._lose_every = lose_every
        self.lost = self._commits = 0
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._relay, args=(client,), daemon=True).start()

    def _relay(self, client: socket.socket) -> None:
        with (
            client,
            socket.create_connection(("127.0.0.1", self._server_port)) as server,
            contextlib.suppress(OSError),
        ):
            while True:
                readable, _, _ = select.select([client, server], [], [])
                for source in readable:
                    data = source.recv(65536)
                    if not data:
                        return
                    (server if source is client else client).sendall(data)
                    if source is client and b"COMMIT" in data and self._loses():
                        server.recv(65536)  # the server's confirmation is not passed on
                        return

    def _loses(self) -> bool:
        with self._lock:
            self._commits += 1
            loses = self._commits % self._lose_every == 0
            self.lost += loses
            return loses

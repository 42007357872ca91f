"""A PostgreSQL server of one's own, on this machine: started, killed and started again."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any


def programs() -> Path | None:
    """The folder of the newest PostgreSQL here."""
    found = [path.parent for path in sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))]
    if not found and (path := shutil.which("initdb")):
        found = [Path(path).parent]
    return found[-1] if found else None


class Server:
    """Its data lie in an empty folder, which lets everybody on this machine in."""

    def __init__(self, bin: Path, folder: Path):
        self.bin, self.folder = bin, folder
        self._user = "postgres" if os.getuid() == 0 else None  # the server refuses to run as root
        if self._user:
            for path in [folder, *folder.parents]:
                if path.owner() == "root" and path.is_relative_to(tempfile.gettempdir()) and path != Path("/tmp"):
                    path.chmod(0o755)
            shutil.chown(folder, self._user, self._user)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = str(free.getsockname()[1])
        made = self._run(bin / "initdb", "-D", folder / "data", "-U", "trueup", "--auth=trust", "-N")
        assert made.wait() == 0, "initdb failed"
        self.start()

    @property
    def url(self) -> str:
        """Without the name of a database."""
        return f"postgresql+psycopg://trueup@127.0.0.1:{self._port}"

    def start(self) -> None:
        """Come up, recover what was committed, and answer."""
        options: list[str | Path] = ["-c", "listen_addresses=127.0.0.1", "-c", "max_connections=200"]
        options += ["-D", self.folder / "data", "-p", self._port, "-k", self.folder]
        self._process = self._run(self.bin / "postgres", *options)
        deadline = time.monotonic() + 60
        while self._run(self.bin / "pg_isready", "-h", "127.0.0.1", "-p", self._port).wait() != 0:
            assert self._process.poll() is None and time.monotonic() < deadline, "PostgreSQL did not start"
            time.sleep(0.1)

    def crash(self) -> None:
        """Stop at once, as in a power cut: every connection is gone, and the next start recovers from the log.

        Also how it ends: a checkpoint on a busy disk takes long, and nothing of it is kept.
        """
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(30)

    def stop(self) -> None:
        """As an administrator restarts it: whoever is connected is thrown out, and it writes all to its files."""
        self._process.send_signal(signal.SIGINT)
        self._process.wait(60)

    def _run(self, *command: str | Path) -> subprocess.Popen[bytes]:
        quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": self.folder}
        return subprocess.Popen(list(map(str, command)), user=self._user, **quiet)

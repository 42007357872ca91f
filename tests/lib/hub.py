"""A small HTTP server that speaks the routes of a model hub, for the programs that ask one: huggingface_hub and
transformers. HF_ENDPOINT points them to it.

Routes: GET /api/models/ID[/revision/REV], /api/models/ID/refs, /api/models/ID/tree/REV, /api/models?search=, and
HEAD and GET of /ID/resolve/REV/FILE with ETag, X-Repo-Commit and ranges. Errors are those of the real hub: a status
with X-Error-Code.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

REPOSITORY = Path(__file__).parents[2]
Files = dict[str, bytes]
TOKEN = "hf_tiny"
"""The token of an account with access to gated models."""


@dataclass
class Repository:
    """A model on the hub: its commits by hash, and the branches that point to them."""

    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    is_gated: bool = False

    def push(self, files: Files, branch: str = "main") -> str:
        """Add a commit to a branch, and return its hash."""
        content = repr((len(self.commits), sorted((name, etag(data)) for name, data in files.items())))
        commit = hashlib.sha1(content.encode()).hexdigest()
        self.commits[commit] = files
        self.branches[branch] = commit
        return commit

    def commit(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.branches.get(revision)


class Hub:
    """The models of the server, its data sets (their names begin with `datasets/`), and what was asked of it."""

    def __init__(self) -> None:
        self.models: dict[str, Repository] = {}
        self.asked: list[str] = []
        """`METHOD path` of every request."""
        self.address = ""
        self.is_down = False
        """Whether every request is answered with 503."""
        self.cut_after: int | None = None
        """The number of bytes after which the transfer of weights hangs."""
        self.is_cut = threading.Event()
        """Set when a transfer hangs."""
        self.goes_on = threading.Event()
        """Set when it may be closed."""

    def model(self, name: str, files: Files, **kwargs: Any) -> Repository:
        """Put a model on the hub."""
        self.models[name] = Repository(**kwargs)
        self.models[name].push(files)
        return self.models[name]

    @contextmanager
    def served(self) -> Iterator[str]:
        """The address of the running server."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{server.server_port}"
        try:
            yield self.address
        finally:
            self.goes_on.set()
            server.shutdown()
            server.server_close()


def files_of(folder: Path) -> Files:
    """The files of a local model."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def etag(data: bytes) -> str:
    """The hash that the hub gives a file: Git's."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        path = unquote(address.path)
        self.hub.asked.append(f"{self.command} {path}")
        if self.hub.is_down:
            self._error(503, "")
        elif path in ("/api/models", "/api/datasets"):
            self._search(parse_qs(address.query), path.removeprefix("/api/"))
        elif path.startswith("/api/datasets/"):
            self._api(path.removeprefix("/api/"))
        elif path.startswith("/api/models/"):
            self._api(path.removeprefix("/api/models/"))
        elif "/resolve/" in path:
            name, _, rest = path.removeprefix("/").partition("/resolve/")
            revision, _, file = rest.partition("/")
            self._file(name, revision, file)
        else:
            self._error(404, "EntryNotFound")

    def _search(self, query: dict[str, list[str]], kind: str) -> None:
        words, author = query.get("search", [""])[0].lower(), query.get("author", [""])[0]
        of_kind = [name for name in self.hub.models if name.startswith("datasets/") == (kind == "datasets")]
        ids = [name.removeprefix("datasets/") for name in of_kind]
        names = [name for name in ids if words in name.lower() and name.startswith(author)]
        self._json([{"id": name, "modelId": name} for name in names])

    def _api(self, path: str) -> None:
        name, what, revision = path, "revision", "main"
        for part in ("revision", "tree", "refs"):
            if f"/{part}" in path:
                name, _, rest = path.partition(f"/{part}")
                what, revision = part, rest.strip("/")
        repository = self._repository(name)
        if repository is None:
            return
        if what == "refs":
            branches = [
                {"name": branch, "ref": f"refs/heads/{branch}", "targetCommit": commit}
                for branch, commit in repository.branches.items()
            ]
            self._json({"branches": branches, "tags": [], "converts": []})
            return
        commit = repository.commit(revision)
        if commit is None:
            self._error(404, "RevisionNotFound")
            return
        files = repository.commits[commit]
        if what == "tree":
            self._json(
                [{"type": "file", "path": file, "size": len(data), "oid": etag(data)} for file, data in files.items()]
            )
            return
        siblings = [{"rfilename": file, "size": len(data), "blobId": etag(data)} for file, data in files.items()]
        name = name.removeprefix("datasets/")
        self._json({"id": name, "modelId": name, "sha": commit, "siblings": siblings, "private": False, "tags": []})

    def _file(self, name: str, revision: str, file: str) -> None:
        repository = self._repository(name)
        if repository is None:
            return
        commit = repository.commit(revision)
        if repository.is_gated and not self._is_allowed():
            self._error(403 if self.headers.get("Authorization") else 401, "GatedRepo")
        elif commit is None:
            self._error(404, "RevisionNotFound")
        elif file not in repository.commits[commit]:
            self._error(404, "EntryNotFound", {"X-Repo-Commit": commit})
        else:
            self._send(repository.commits[commit][file], commit, file)

    def _send(self, data: bytes, commit: str, file: str) -> None:
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{etag(data)}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", str(len(data) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.hub.cut_after is not None and file.endswith(".safetensors"):
            self.wfile.write(data[start : start + self.hub.cut_after])
            self.wfile.flush()
            self.hub.is_cut.set()
            self.hub.goes_on.wait(60)
            self.close_connection = True
            return
        self.wfile.write(data[start:])

    def _repository(self, name: str) -> Repository | None:
        """The model; without one, the real hub's answer to somebody who is not logged in, who may lack access."""
        repository = self.hub.models.get(name)
        if repository is None:
            self._error(404 if self._is_allowed() else 401, "RepoNotFound")
        return repository

    def _is_allowed(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _json(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _error(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {**({"X-Error-Code": code} if code else {}), **(headers or {})}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", "0")
        self.end_headers()


# ---- Commands at the hub ----------------------------------------------------------------------------------------

_COMMANDS = """
import contextlib, io, json, sys
from pathlib import Path
from trueup.campaign import load_campaign
from trueup.checking.model import settle
from trueup.cli import main
for line in sys.stdin:
    first, *others = json.loads(line)
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        if first == "begin":
            campaign = load_campaign(Path(others[0]))
            campaign.run_dir.mkdir(parents=True, exist_ok=True)
            for hub_id in campaign.hub_ids(campaign.needed()):
                campaign, _ = settle(campaign, hub_id, keep=True)
        else:
            code = main([first, *others])
    print("answer", json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
"""


class Commands:
    """A process that runs one command of `trueup` after the other, so that libraries are imported once. It reaches a
    hub, and has a local cache of its own. `begin CONFIG` does what `run` does before the first stage: the run stays at
    the commits of its hub ids from then on."""

    def __init__(self, home: Path, address: str):
        kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        self.home = home
        self.process = subprocess.Popen(
            [sys.executable, "-c", _COMMANDS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=REPOSITORY,
            env={
                **kept,
                "HF_HOME": str(home / "hf"),
                "TRUEUP_CACHE": str(home / "cache"),
                "HF_ENDPOINT": address,
                "HF_HUB_DISABLE_TELEMETRY": "1",
            },
        )

    def __call__(self, *arguments: str | Path) -> tuple[int, str, str]:
        """Exit code, standard output and standard error of a command."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps([str(argument) for argument in arguments]) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("answer "):
                code, out, err = json.loads(line.removeprefix("answer "))
                return code, out, err
        raise AssertionError("the process ended")

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()

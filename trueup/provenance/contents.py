"""Hashes of what a config only names: a model's files, a hub id's commit, a template. No torch.

A result is stale once the files behind a name have changed, even if the name has not. Small files are hashed each time.
Gigabytes of weights are hashed once, and again when the file system says that the file is another one.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypedDict

from trueup.files import sha256_file, write_atomically
from trueup.provenance import commits

Contents = dict[str, str]
"""{file: its SHA-256}, relative to the named folder; for a hub id {"commit": its hash}."""

OF_A_MODEL = (".safetensors", ".gguf", ".json", ".jinja", ".model", ".tiktoken", ".txt", ".py")
"""Endings of the files in a model's folder that affect results: weights, settings, tokenizer, template, code."""
_REMEMBERED_BYTES = 64 * 2**20
"""Size from which a file's hash is remembered."""
_SETTLED_SECONDS = 2.0
"""A file that changed so recently may change again within the clock's resolution; its hash is not remembered."""


def cache_dir() -> Path:
    """The folder of the embedded model and the hashes of large files: $TRUEUP_CACHE, or the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("TRUEUP_CACHE") or Path(base) / "trueup")


def of_file(path: str | Path) -> Contents | None:
    """The contents of one file; None if there is no such file."""
    path = Path(path)
    return {path.name: sha256_remembered(path)} if os.path.isfile(path) else None


def of_model(name: str, revision: str | None = None) -> Contents | None:
    """The contents of a model's folder, file or hub id; None if it is not on this machine, or never changes."""
    if name == "embedded":  # one wheel, known by its hash
        return None
    path = Path(name)
    if os.path.isfile(path):
        return of_file(path)
    if path.is_dir():
        files = [*path.iterdir(), *(path / "additional_chat_templates").glob("*")]
        files_of_model = sorted(file for file in files if file.suffix in OF_A_MODEL and file.is_file())
        return {str(file.relative_to(path)): sha256_remembered(file) for file in files_of_model}
    commit = _commit(name, revision)
    return {"commit": commit} if commit else None


def _commit(name: str, revision: str | None) -> str | None:
    """A hub id's commit, if the revision is one or this machine has its files."""
    if revision and commits.is_commit(revision):
        return revision
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except ModuleNotFoundError:  # an installation that only labels has no training libraries
        return None
    return commits.cached(Path(HF_HUB_CACHE), name, revision)


def changed(before: Mapping[str, Contents | None], now: Mapping[str, Contents | None]) -> list[str]:
    """`key: file has changed` for every difference. A key that was not recorded before gives none."""
    lines = []
    for key, files in before.items():
        if files is None:
            continue
        after = now.get(key) or {}
        for file in sorted({*files, *after}):
            if files.get(file) != after.get(file):
                how = "is missing" if file not in after else "is new" if file not in files else "has changed"
                lines.append(f"{key}: {file} {how}")
    return lines


# ---- Hashes of large files --------------------------------------------------------------------------------------


class _Hash(TypedDict):
    """A file's hash, and what the file system said of the file."""

    state: list[int]
    sha256: str


def sha256_remembered(path: Path) -> str:
    """A file's hash. A large file's is remembered together with its file system status: a copy in its place has another
    inode or another time of change, even with the same size and date."""
    status = path.stat()
    if status.st_size < _REMEMBERED_BYTES:
        return sha256_file(path)
    key = str(path.resolve())
    state = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    cache = _remembered()
    if (entry := cache.get(key)) and entry["state"] == state:
        return entry["sha256"]
    sha256 = sha256_file(path)
    if time.time() - status.st_ctime > _SETTLED_SECONDS:
        _remember({**cache, key: {"state": state, "sha256": sha256}})
    return sha256


def _remembered() -> dict[str, _Hash]:
    try:
        cache = json.loads((cache_dir() / "hashes.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return cache if isinstance(cache, dict) else {}


def _remember(cache: dict[str, _Hash]) -> None:
    """Write the cache. A failure only costs time, so it is ignored."""
    with suppress(OSError):
        cache_dir().mkdir(parents=True, exist_ok=True)
        write_atomically(cache_dir() / "hashes.json", json.dumps(cache), by_process=True)

"""Reading, writing and removing files of a run: only a file is read, and a reader never sees half of one."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Json = dict[str, Any]
"""An object whose keys this code does not know: another program's settings, a file before it is checked, a config as
plain data."""
PARTIAL = ".partial"
"""Ending of a file that is being written."""


def require_file(path: Path) -> None:
    """An OSError if `path` exists and is not a file: reading a pipe or a device might never end."""
    if path.exists() and not path.is_file():
        what = "is a folder" if path.is_dir() else "is a pipe, a socket or a device"
        raise OSError(errno.EISDIR, f"{what}; a file is wanted", str(path))


def json_if_any(path: Path) -> Any:
    """What a JSON file holds; None where there is none, or none that can be read."""
    try:
        return json.loads(read_text(path))
    except (OSError, ValueError, RecursionError):
        return None


def read_text(path: Path) -> str:
    """The text of a file of a run; an OSError if it is not a file, as `require_file` says."""
    require_file(path)
    return path.read_text(encoding="utf-8")


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    require_file(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, text: str | Iterable[str], by_process: bool = False) -> None:
    """Write a file so that readers see the old one or the whole new one, which is on disk when this returns.

    text        the whole, or its parts in order
    by_process  other processes may write the same file at the same time; the last one counts
    """
    with replacing(path, by_process) as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines([text] if isinstance(text, str) else text)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replacing(path: Path, by_process: bool = False) -> Iterator[Path]:
    """A place to write a file to, which gets its name when all is written."""
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}" if by_process else path.name + PARTIAL)
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def mend_last_line(path: Path) -> None:
    """Cut off what an interruption left of the last line of a file that lines are appended to."""
    if path.exists():
        whole, newline, torn = path.read_bytes().rpartition(b"\n")
        if torn:
            os.truncate(path, len(whole + newline))


def files_under(top: Path) -> Iterator[Path]:
    """A file by itself, or all files under a folder; links are not followed."""
    if top.is_dir() and not top.is_symlink():
        yield from (path for path in top.rglob("*") if path.is_symlink() or not path.is_dir())
    else:
        yield top


def remove(path: Path) -> None:
    """Remove a file, a link (not what it points to) or a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def is_writable(*paths: Path) -> bool:
    """Whether this process may write to all paths; false on a read-only medium too."""
    effective = os.access in os.supports_effective_ids
    return all(os.access(path, os.W_OK, effective_ids=effective) for path in paths)


def obey_umask(directory: Path) -> None:
    """Give safetensors files the mode of any new file. The library makes them readable by their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    for path in directory.rglob("*.safetensors"):
        path.chmod(0o666 & ~mask)

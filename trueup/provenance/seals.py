"""The chain of seals: `seals.jsonl` in the run directory, with a line for each stage that was finished or begun again.

A line contains the hash of the line before it and the hash of a stage's manifest, which in turn contains the hash of
everything that the stage read and wrote. So the hash of the last line, the root, stands for the whole run.

There is no key, so anybody who can write to the run can also write a new chain. By itself the chain shows accidents,
and edits by somebody who does not rewrite all of it. A root that was stored elsewhere proves more:
`trueup verify RUN --root HASH`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from trueup.files import require_file

SEALS = "seals.jsonl"


@dataclass(frozen=True)
class Seal:
    """One line. `manifest_sha256` is None if a finished stage was begun again."""

    stage: str
    manifest_sha256: str | None
    previous: str | None
    """Hash of the line before it."""
    root: str
    """Hash of this line, which stands for everything up to here."""


def append(run_dir: Path, stage: str, manifest_sha256: str | None) -> None:
    """Add a line under a lock, since stages finish side by side. It is on disk when this returns."""
    with (run_dir / SEALS).open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        lines = file.read().splitlines()
        line = {
            "stage": stage,
            "manifest_sha256": manifest_sha256,
            "utc": datetime.now(UTC).isoformat(timespec="seconds"),
            "previous": _hash(lines[-1]) if lines else None,
        }
        file.write(json.dumps(line).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read(run_dir: Path) -> tuple[list[Seal], list[str]]:
    """(seals in order, problems). The last seal's root is the root of the run."""
    path = run_dir / SEALS
    try:
        require_file(path)
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return [], []
    except OSError as error:
        return [], [f"{path}: cannot be read ({error.strerror})"]
    seals, problems, previous = [], [], None
    for number, line in enumerate(lines, start=1):
        seal = _parse(line)
        if seal is None:
            problems.append(f"{path}:{number}: not a seal")
        else:
            if seal.previous != previous:
                problems.append(f"{path}:{number}: does not follow from the line before it: the chain was edited")
            seals.append(seal)
        previous = _hash(line)
    return seals, problems


def last(run_dir: Path, stage: str) -> Seal | None:
    """The newest seal of a stage."""
    return next((seal for seal in reversed(read(run_dir)[0]) if seal.stage == stage), None)


def _parse(line: bytes) -> Seal | None:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or not {"stage", "manifest_sha256", "previous"} <= values.keys():
        return None
    sound = all(isinstance(values[key], str | None) for key in ("stage", "manifest_sha256", "previous"))
    if not sound or not values["stage"]:
        return None
    return Seal(values["stage"], values["manifest_sha256"], values["previous"], _hash(line))


def _hash(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()

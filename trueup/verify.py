"""`trueup verify`: do the bytes of a run still say what its manifests say, and its manifests what its seals say?"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from trueup import runs
from trueup.data.records import LEFT_OUT_FOLDER
from trueup.errors import RunError
from trueup.judging.votes import VOTES
from trueup.provenance import seals
from trueup.provenance.contents import sha256_file
from trueup.runs import DIRECTORIES, MANIFEST, FinishedStage
from trueup.stages import STAGES, load_object

StageVerify = Callable[[FinishedStage], tuple[str | None, str | None]]
"""Returns (problem, note): what is wrong with the store that a stage's manifest states, or why it was not checked."""

_BESIDE = {
    ".lock",
    seals.SEALS,
    LEFT_OUT_FOLDER,
    *DIRECTORIES.values(),
    *(f"{VOTES}{end}" for end in ("", "-wal", "-shm")),
}
"""What stands in a run directory; `left_out/` is of imports."""
_BESIDE_OUTPUTS = {MANIFEST, runs.BEGUN, runs.LOG, *(f"{runs.STORE}{end}" for end in ("", "-wal", "-shm"))}
"""What stands in a stage's folder and is no result. The store is checked by what its stage has read of it."""


@dataclass
class Verification:
    """What was found. `problems` and `notes` are lines; a note is what could not be checked."""

    checked: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    root: str | None = None
    """Hash of the last seal."""


def verify(run_dir: Path, root: str | None = None) -> Verification:
    """Recompute every hash that a run's seals and manifests state.

    root  a root that was kept elsewhere; a problem if no seal of the run has it
    """
    if not any(runs.stage_dir(run_dir, stage).is_dir() for stage in DIRECTORIES):
        raise RunError(f"{run_dir}: not a run directory (no stage folder in it)")
    found = Verification()
    finished = _stages(run_dir, found)
    _check_seals(run_dir, finished, root, found)
    for path in sorted(run_dir.iterdir()):
        if path.name not in _BESIDE:
            found.problems.append(f"{path}: not a part of this run")
    for stage in finished.values():
        if stage is not None:
            _check_stage(run_dir, stage, finished, found)
    return found


def _stages(run_dir: Path, found: Verification) -> dict[str, FinishedStage | None]:
    """The stages with a manifest that can be read; None where it cannot."""
    stages: dict[str, FinishedStage | None] = {}
    for stage in DIRECTORIES:
        try:
            if made := runs.find_stage(run_dir, stage):
                stages[stage] = made
                found.checked += 1
        except RunError as error:
            stages[stage] = None
            found.problems.append(str(error))
    return stages


def _check_seals(
    run_dir: Path, finished: dict[str, FinishedStage | None], root: str | None, found: Verification
) -> None:
    chain, problems = seals.read(run_dir)
    found.checked += len(chain)
    found.problems += problems
    found.root = chain[-1].root if chain else None
    if root is not None:
        after = next((i for i, seal in enumerate(reversed(chain)) if seal.root == root), None)
        if after is None:
            found.problems.append(f"{run_dir / seals.SEALS}: no seal has the root {root}: the chain is another one")
        elif after:
            found.notes.append(f"{after} seals came after the root that you kept; it says nothing about those")
    last = {seal.stage: seal.manifest_sha256 for seal in chain}
    for stage, sha256 in last.items():
        if stage not in DIRECTORIES:
            found.problems.append(f"{run_dir / seals.SEALS}: seals a stage {stage!r}, which there is not")
        elif sha256 and stage not in finished:
            path = runs.stage_dir(run_dir, stage) / MANIFEST
            found.problems.append(f"{path}: missing; {stage} was finished and sealed")
    for stage, made in finished.items():
        if made is not None and made.sha256 != last.get(stage):
            found.problems.append(f"{made.dir / MANIFEST}: not the one that was sealed when {stage} was finished")


def _check_stage(
    run_dir: Path, made: FinishedStage, finished: dict[str, FinishedStage | None], found: Verification
) -> None:
    stage, problems = made.stage, found.problems
    text = (made.dir / MANIFEST).read_text(encoding="utf-8")
    if text != runs.sealed_text(json.loads(text)):
        problems.append(f"{made.dir / MANIFEST}: changed since {stage} wrote it")
    known = {output.path: output.sha256 for output in made.manifest.outputs}
    if len(known) < len(made.manifest.outputs):
        problems.append(f"{made.dir / MANIFEST}: names a result more than once")
    for name, sha256 in known.items():
        _check_file(made.dir / name, sha256, "", f"changed since {stage} wrote it", found)
    for path in sorted(made.dir.rglob("*")):
        name = str(path.relative_to(made.dir))
        if (path.is_symlink() or not path.is_dir()) and name not in known and name not in _BESIDE_OUTPUTS:
            problems.append(f"{path}: not in the manifest of {stage}")
    for path in (made.dir, made.dir / MANIFEST, *(made.dir / name for name in known)):
        if os.path.islink(path):  # unlike Path.is_symlink, whatever its name may be
            found.notes.append(
                f"{path}: a link; its bytes lie elsewhere, and go on being these only as long as they do"
            )
    for source in made.manifest.inputs:
        what = f"input of {stage}, "
        _check_file(Path(source.path), source.sha256, what, f"changed since {stage} read it", found)
    for parent in made.manifest.parents:
        there = finished.get(parent.stage)
        found.checked += 1
        if there is None:
            directory = run_dir / DIRECTORIES.get(parent.stage, parent.stage)
            problems.append(f"{directory}: parent of {stage}, unfinished or missing")
        elif there.sha256 != parent.manifest_sha256:
            problems.append(f"{there.dir / MANIFEST}: not the {parent.stage} that {stage} was made from")
    if made.manifest.store is not None:
        problem, note = _verify_store(made)
        found.checked += 1
        problems += [problem] if problem else []
        found.notes += [note] if note else []


def _verify_store(made: FinishedStage) -> tuple[str | None, str | None]:
    """A problem, or a note, by the code of the stage whose manifest states a store."""
    schema = load_object(STAGES[made.stage].config)
    name: str | None = getattr(schema, "verify", None)  # a choice of schemas has none
    if name is None:
        return f"{made.dir / MANIFEST}: states a store, and {made.stage} has none", None
    verify: StageVerify = load_object(name)
    return verify(made)


def _check_file(path: Path, sha256: str, what: str, changed: str, found: Verification) -> None:
    found.checked += 1
    try:
        if path.exists() and not path.is_file():  # a device or a pipe would be read for ever
            found.problems.append(f"{path}: {what}no file")
        elif sha256_file(path) != sha256:
            found.problems.append(f"{path}: {changed}")
    except FileNotFoundError:
        found.problems.append(f"{path}: {what}missing")
    except OSError as error:
        found.problems.append(f"{path}: {what}cannot be read ({error.strerror})")
    except ValueError:  # NUL, or half of a surrogate pair
        found.problems.append(f"{path}: {what}no name that a file can have")

"""`trueup verify`: compares the files of a run with its manifests, and the manifests with the seals."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from trueup import runs
from trueup.data.records import LEFT_OUT_FOLDER
from trueup.errors import RunError
from trueup.files import sha256_file
from trueup.judging.votes import VOTES
from trueup.provenance import commits, seals
from trueup.provenance.inputs import why_changed
from trueup.runs import DIRECTORIES, MANIFEST, FinishedStage
from trueup.stages import OF_EVERY_ROUND, STAGES, campaign_dir, is_stage, load_object, round_dirs, round_of, stages_of

StageVerify = Callable[[FinishedStage], tuple[str | None, str | None]]
"""Returns (problem, note): the problem of the store in a stage's manifest, or why it was not checked."""

_OF_A_ROUND = {
    LEFT_OUT_FOLDER,
    *(DIRECTORIES[stage] for stage in OF_EVERY_ROUND),
    *(f"{VOTES}{end}" for end in ("", "-wal", "-shm")),
}
"""Names that belong in a round's folder; `left_out/` comes from imports."""
_OF_THE_CAMPAIGN = {*_OF_A_ROUND, ".lock", seals.SEALS, commits.COMMITS, *DIRECTORIES.values()}
"""Names that belong in a run directory, besides the further rounds."""
_BESIDE_OUTPUTS = {MANIFEST, runs.BEGUN, runs.LOG}
"""Names in a stage's folder that are no results."""
_STORE = {f"{runs.STORE}{end}" for end in ("", "-wal", "-shm")}
"""Names beside the first round's labels. The store is checked by the events that its stage has read."""


@dataclass
class Verification:
    """The outcome. `problems` and `notes` are lines; a note names something that could not be checked."""

    checked: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    root: str | None = None
    """Hash of the last seal."""


def verify(run_dir: Path, root: str | None = None) -> Verification:
    """Recompute every hash in a run's seals and manifests.

    root  a root that was stored elsewhere; a problem if no seal of the run has it
    """
    run_dir = run_dir if round_of(run_dir.absolute()) == 1 else campaign_dir(run_dir.absolute())
    if not any(runs.stage_dir(run_dir, stage).is_dir() for stage in DIRECTORIES):
        raise RunError(f"{run_dir}: not a run directory (no stage folder in it)")
    outcome = Verification()
    finished = _stages(run_dir, outcome)
    _check_seals(run_dir, finished, root, outcome)
    rounds = round_dirs(run_dir)
    for folder in rounds:
        known = _OF_THE_CAMPAIGN | {path.name for path in rounds[1:]} if folder == run_dir else _OF_A_ROUND
        unknown = sorted(path for path in folder.iterdir() if path.name not in known)
        outcome.problems += [f"{path}: not a part of this run" for path in unknown]
        if folder != run_dir and folder.is_symlink():
            outcome.notes.append(f"{folder}: a link; its bytes lie elsewhere and may change there")
    for stage in finished.values():
        if stage is not None:
            _check_stage(run_dir, stage, finished, outcome)
    return outcome


def _stages(run_dir: Path, outcome: Verification) -> dict[str, FinishedStage | None]:
    """The stages of all rounds that have a manifest, by their names; None for a manifest that cannot be read."""
    stages: dict[str, FinishedStage | None] = {}
    for stage in stages_of(run_dir):
        try:
            if result := runs.find_stage(run_dir, stage):
                stages[stage] = result
                outcome.checked += 1
        except RunError as error:
            stages[stage] = None
            outcome.problems.append(str(error))
    return stages


def _check_seals(
    run_dir: Path, finished: dict[str, FinishedStage | None], root: str | None, outcome: Verification
) -> None:
    chain, problems = seals.read(run_dir)
    outcome.checked += len(chain)
    outcome.problems += problems
    outcome.root = chain[-1].root if chain else None
    if root is not None:
        after = next((i for i, seal in enumerate(reversed(chain)) if seal.root == root), None)
        if after is None:
            outcome.problems.append(f"{run_dir / seals.SEALS}: no seal has the root {root}: the chain is another one")
        elif after:
            outcome.notes.append(f"{after} seals came after the root that you gave; it proves nothing about those")
    last = {seal.stage: seal.manifest_sha256 for seal in chain}
    for stage, sha256 in last.items():
        if not is_stage(stage):
            outcome.problems.append(f"{run_dir / seals.SEALS}: seals an unknown stage, {stage!r}")
        elif sha256 and stage not in finished:
            path = runs.stage_dir(run_dir, stage) / MANIFEST
            outcome.problems.append(f"{path}: missing; {stage} was finished and sealed")
    for stage, result in finished.items():
        if result is not None and result.sha256 != last.get(stage):
            outcome.problems.append(f"{result.dir / MANIFEST}: not the one that was sealed when {stage} was finished")


def _check_stage(
    run_dir: Path, result: FinishedStage, finished: dict[str, FinishedStage | None], outcome: Verification
) -> None:
    stage, problems = result.stage, outcome.problems
    text = (result.dir / MANIFEST).read_text(encoding="utf-8")
    if text != runs.sealed_text(json.loads(text)):
        problems.append(f"{result.dir / MANIFEST}: changed since {stage} wrote it")
    hashes = {output.path: output.sha256 for output in result.manifest.outputs}
    if len(hashes) < len(result.manifest.outputs):
        problems.append(f"{result.dir / MANIFEST}: names a result more than once")
    for name, sha256 in hashes.items():
        _check_file(result.dir / name, sha256, "", f"changed since {stage} wrote it", outcome)
    beside = _BESIDE_OUTPUTS | (_STORE if stage == "label" else set())
    for path in sorted(result.dir.rglob("*")):
        name = str(path.relative_to(result.dir))
        if (path.is_symlink() or not path.is_dir()) and name not in hashes and name not in beside:
            problems.append(f"{path}: not in the manifest of {stage}")
    for path in (result.dir, result.dir / MANIFEST, *(result.dir / name for name in hashes)):
        if os.path.islink(path):  # Path.is_symlink raises on some names
            outcome.notes.append(f"{path}: a link; its bytes lie elsewhere and may change there")
    for source in result.manifest.inputs:
        what = f"input of {stage}, "
        changed = f"changed since {stage} read it"
        if source.files is None:
            _check_file(Path(source.path), source.sha256, what, changed, outcome)
        else:
            outcome.checked += len(source.files)
            if reason := why_changed(Path(source.path), source.sha256, source.files):
                outcome.problems.append(f"{source.path}: {what}{changed} ({reason})")
    for parent in result.manifest.parents:
        if not is_stage(parent.stage):
            problems.append(f"{result.dir / MANIFEST}: names an unknown stage, {parent.stage}")
    for parent in result.parents:
        parent_result = finished.get(parent.stage)
        outcome.checked += 1
        if parent_result is None:
            directory = runs.stage_dir(run_dir, parent.stage)
            problems.append(f"{directory}: parent of {stage}, unfinished or missing")
        elif parent_result.sha256 != parent.manifest_sha256:
            problems.append(f"{parent_result.dir / MANIFEST}: not the {parent.stage} that {stage} was made from")
    if result.manifest.store is not None:
        problem, note = _verify_store(result)
        outcome.checked += 1
        problems += [problem] if problem else []
        outcome.notes += [note] if note else []


def _verify_store(result: FinishedStage) -> tuple[str | None, str | None]:
    """(problem, note) of the store in a stage's manifest, by the stage's own code."""
    schema = load_object(STAGES[result.manifest.stage].config)
    name: str | None = getattr(schema, "verify", None)  # a choice of schemas has none
    if name is None:
        return f"{result.dir / MANIFEST}: states a store, and {result.stage} has none", None
    verify: StageVerify = load_object(name)
    return verify(result)


def _check_file(path: Path, sha256: str, what: str, problem: str, outcome: Verification) -> None:
    outcome.checked += 1
    try:
        if path.exists() and not path.is_file():  # reading a device or a pipe might never end
            outcome.problems.append(f"{path}: {what}no file")
        elif sha256_file(path) != sha256:
            outcome.problems.append(f"{path}: {problem}")
    except FileNotFoundError:
        outcome.problems.append(f"{path}: {what}missing")
    except OSError as error:
        outcome.problems.append(f"{path}: {what}cannot be read ({error.strerror})")
    except ValueError:  # NUL, or half of a surrogate pair
        outcome.problems.append(f"{path}: {what}no name that a file can have")

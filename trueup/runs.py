"""The run directory: one folder per stage, finished when its manifest is there.

A stage opens its folder with `begin`, writes what it makes, and calls `StageRun.finish`, which hashes every file and
writes `manifest.json` last and atomically. `open_stage` is how a stage meets an earlier one. An interrupted stage has
no manifest; begun again with the same identity it keeps its checkpoints, with another it starts afresh.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import yaml

from trueup.config import StageConfig
from trueup.contents import Contents, changed, sha256_file
from trueup.errors import RunError
from trueup.records import Dropped, Message, opening_id

MANIFEST = "manifest.json"
CONFIG = "config.yaml"
BEGUN = "begun.json"
METRICS = "metrics.jsonl"
TRAINED = "trained_prompts.json"
LOG = "log.txt"

DIRECTORIES = {
    "sft": "sft",
    "sample": "candidates",
    "label": "labels",
    "reward": "reward",
    "align": "align",
    "compare": "compare",
}

_VERSIONED = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "gradio", "sqlalchemy")
# Not results: what a stage says while it works, its resume state, and the label store, which outlives every stage.
_NOT_OUTPUTS = (MANIFEST, LOG, BEGUN)
STORE = "labels.sqlite"


def _is_output(path: Path, directory: Path) -> bool:
    top = path.relative_to(directory).parts[0]
    return not (top in _NOT_OUTPUTS or top.startswith(("checkpoint", STORE)) or top.endswith(".partial"))


# ---- A finished stage -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FinishedStage:
    """A stage whose manifest is there."""

    stage: str
    dir: Path
    manifest: dict[str, Any]

    @property
    def trained_prompts(self) -> set[str]:
        """Of the dialogues that it trained on each `opening_id`; empty for a stage that does not train."""
        path = self.dir / TRAINED
        return set(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else set()

    @property
    def sha256(self) -> str:
        """Hash of the manifest, which names every output by hash: the identity of the result."""
        return sha256_file(self.dir / MANIFEST)


def stage_dir(run_dir: Path, stage: str) -> Path:
    return run_dir / DIRECTORIES[stage]


def find_stage(run_dir: Path, stage: str) -> FinishedStage | None:
    """The finished stage, or None."""
    directory = stage_dir(run_dir, stage)
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise RunError(f"{directory / MANIFEST}: not JSON ({error}); delete it to make the stage run again") from None
    return FinishedStage(stage, directory, manifest)


def open_stage(run_dir: Path, stage: str) -> FinishedStage:
    """The finished stage, or a RunError that says what to run."""
    found = find_stage(run_dir, stage)
    if found is None:
        directory = stage_dir(run_dir, stage)
        state = "is unfinished" if directory.exists() else "is not there"
        raise RunError(
            f"{directory} {state}: run `trueup {stage} CONFIG` first, or `trueup run CONFIG` for the whole sequence"
        )
    return found


# ---- A stage at work --------------------------------------------------------------------------------------------


@dataclass
class Finding:
    level: Literal["info", "warn", "fail"]
    code: str
    message: str


@dataclass
class StageRun:
    """An open stage folder. Collects what the manifest will say."""

    config: StageConfig
    dir: Path
    resumed: bool
    """True: an interrupted run of the same identity was found, and its checkpoints were kept."""
    parents: list[FinishedStage]
    started: float = field(default_factory=time.time)
    inputs: list[dict[str, Any]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    contents: dict[str, Contents | None] = field(default_factory=dict)
    """Of the config, as the stage began."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Further keys of the manifest: device, dtype, tokens_per_s, ..."""
    dialogues: set[str] = field(default_factory=set)
    """What it trained on, see `trained_on`."""

    def add_input(self, path: Path, rows: int, dropped: Dropped | None = None) -> None:
        """Record a file that was read, how many of its rows were used, and why others were not."""
        self.inputs.append(
            {
                "path": str(path.absolute()),  # so that `verify` finds it from wherever it is called
                "sha256": sha256_file(path),
                "rows": rows,
                "dropped": dict(dropped.counts) if dropped else {},
            }
        )

    def trained_on(self, dialogues: Iterable[list[Message]]) -> None:
        """Record the dialogues that this stage trains on, so that a comparison can prove that it asks none of them.

        What is kept of each is its `opening_id`: a held-out prompt must not even begin like one of them.
        """
        self.dialogues |= set(map(opening_id, dialogues))
        self.write_json(TRAINED, sorted(self.dialogues))

    def find(self, level: Literal["info", "warn", "fail"], code: str, message: str) -> None:
        """Add a finding; the stage's verdict is the worst level among them."""
        self.findings.append(Finding(level, code, message))

    def log(self, row: dict[str, Any]) -> None:
        """Append a row to metrics.jsonl."""
        with (self.dir / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def write_json(self, name: str, value: Any) -> None:
        _write_atomically(self.dir / name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    @property
    def verdict(self) -> dict[str, Any]:
        levels = {finding.level for finding in self.findings}
        status = "fail" if "fail" in levels else "warn" if "warn" in levels else "pass"
        return {"status": status, "findings": [vars(finding) for finding in self.findings]}

    def finish(self) -> Path:
        """Hash the outputs, write the manifest, and drop what only an interrupted run needs. Returns the folder."""
        for checkpoint in self.dir.glob("checkpoint*"):
            shutil.rmtree(checkpoint)
        outputs = sorted(p for p in self.dir.rglob("*") if p.is_file() and _is_output(p, self.dir))
        manifest = {
            "stage": self.config.stage,
            "status": "complete",
            "started_utc": datetime.fromtimestamp(self.started, UTC).isoformat(timespec="seconds"),
            "duration_s": round(time.time() - self.started, 1),
            "device": "cpu",
            "dtype": None,
            "seed": self.config.seed,
            "git_commit": _git_commit(),
            "versions": _versions(),
            "config_sha256": self.config.sha256(),
            "identity": self.config.identity(),
            "parents": [{"stage": parent.stage, "manifest_sha256": parent.sha256} for parent in self.parents],
            "inputs": self.inputs,
            "outputs": [{"path": str(p.relative_to(self.dir)), "sha256": sha256_file(p)} for p in outputs],
            # What was there when the stage began is what it read; a model of the hub may have been fetched since.
            "contents": {**self.config.contents(), **{key: of for key, of in self.contents.items() if of is not None}},
            "fingerprint": self.config.fingerprint(),
            "verdict": self.verdict,
            **self.facts,
        }
        _write_atomically(self.dir / MANIFEST, _sealed(manifest))
        (self.dir / BEGUN).unlink(missing_ok=True)
        return self.dir


def _sealed(manifest: dict[str, Any]) -> str:
    """The text of a manifest, with the hash of all its other keys as the last one: no other file states its hash."""
    content = {key: value for key, value in manifest.items() if key != "content_sha256"}
    seal = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps({**content, "content_sha256": seal}, indent=2, ensure_ascii=False) + "\n"


def begin(config: StageConfig) -> StageRun:
    """Open the folder of a stage; checkpoints are kept only of an interrupted run of the same identity."""
    parents = [open_stage(config.run_dir, name) for name in config.parents()]
    directory = stage_dir(config.run_dir, config.stage)
    resumed = resumable(config)
    if not resumed:
        _clear(directory)
        directory.mkdir(parents=True, exist_ok=True)
        _write_atomically(directory / BEGUN, json.dumps(_begun(config, parents)))
    (directory / CONFIG).write_text(
        yaml.safe_dump({config.stage: config.model_dump(mode="json")}, sort_keys=False, allow_unicode=True),
        encoding="utf-8",
    )
    return StageRun(config, directory, resumed, parents, contents=config.contents())


def resumable(config: StageConfig) -> bool:
    """Whether the stage was interrupted, and begins now from the same config, inputs and parents as it did then."""
    directory = stage_dir(config.run_dir, config.stage)
    if (directory / MANIFEST).exists() or not (directory / BEGUN).exists():
        return False
    parents = [find_stage(config.run_dir, name) for name in config.parents()]
    before, now = _read_json(directory / BEGUN), _begun(config, [parent for parent in parents if parent])
    if not isinstance(before, dict) or changed(before.pop("contents", {}), now.pop("contents")):
        return False
    return before == now


def _begun(config: StageConfig, parents: list[FinishedStage]) -> dict[str, Any]:
    return {
        "config_sha256": config.sha256(),
        "parents": [parent.sha256 for parent in parents],
        "inputs": [sha256_file(path) for path in config.input_paths() if path.is_file()],
        "contents": config.contents(),
    }


def _clear(directory: Path) -> None:
    """Remove what an earlier run of the stage left; the manifest first, so that no moment shows a false result."""
    (directory / MANIFEST).unlink(missing_ok=True)
    for path in directory.glob("*"):
        if path.name.startswith(STORE) or path.name == LOG:
            continue  # the label store outlives every stage; the log is being written by whoever started us
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None


def _write_atomically(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in _VERSIONED:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _git_commit() -> str | None:
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


# ---- One run at a time ------------------------------------------------------------------------------------------


@contextmanager
def locked(run_dir: Path) -> Iterator[int]:
    """Hold the run directory; a second holder is refused. Yields the descriptor, which children inherit.

    The lock belongs to the open file, so it lives as long as any process that inherited it: a stage whose parent was
    killed still protects the folder it is writing.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise RunError(
                f"{run_dir} is in use by another trueup (process {file.read().strip() or 'unknown'}); wait, or stop it"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield file.fileno()


# ---- Verification -----------------------------------------------------------------------------------------------


def verify(run_dir: Path) -> tuple[int, list[str]]:
    """Recompute every hash that the run's manifests state. Returns (files checked, problems)."""
    if not any(stage_dir(run_dir, stage).is_dir() for stage in DIRECTORIES):
        raise RunError(f"{run_dir}: not a run directory (no stage folder in it)")
    checked, problems = 0, []
    for stage in DIRECTORIES:
        found = find_stage(run_dir, stage)
        if found is None:
            continue
        checked += 1
        if (found.dir / MANIFEST).read_text(encoding="utf-8") != _sealed(found.manifest):
            problems.append(f"{found.dir / MANIFEST}: changed since {stage} wrote it")
        for output in found.manifest["outputs"]:
            path = found.dir / output["path"]
            checked += 1
            if not path.exists():
                problems.append(f"{path}: missing")
            elif sha256_file(path) != output["sha256"]:
                problems.append(f"{path}: changed since {stage} wrote it")
        known = {output["path"] for output in found.manifest["outputs"]}
        for path in sorted(found.dir.rglob("*")):
            if path.is_file() and _is_output(path, found.dir) and str(path.relative_to(found.dir)) not in known:
                problems.append(f"{path}: not in the manifest of {stage}")
        for source in found.manifest["inputs"]:
            path = Path(source["path"])
            checked += 1
            if not path.exists():
                problems.append(f"{path}: input of {stage}, missing")
            elif sha256_file(path) != source["sha256"]:
                problems.append(f"{path}: changed since {stage} read it")
        for parent in found.manifest["parents"]:
            made = find_stage(run_dir, parent["stage"])
            checked += 1
            if made is None:
                problems.append(f"{stage_dir(run_dir, parent['stage'])}: parent of {stage}, unfinished or missing")
            elif made.sha256 != parent["manifest_sha256"]:
                problems.append(f"{made.dir / MANIFEST}: not the {parent['stage']} that {stage} was made from")
    return checked, problems

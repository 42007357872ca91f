"""The run directory: one folder per stage, which is finished when its manifest is there. A further round's stages have
theirs within `round-2/` and so on (trueup.stages), and a stage finds those of other rounds by `round-1/align`.

A stage opens its folder with `begin`, writes its results, and calls `StageRun.finish`, which hashes every file and
writes `manifest.json` last and atomically. A stage opens an earlier one with `open_stage`. An interrupted stage has no
manifest; begun again with the same identity it keeps its checkpoints, with another it starts anew.

A stage removes and seals only files with the names in `OUTPUTS`; other files in its folder belong to the user.
`trueup.provenance.seals` has the chain over all manifests of a run.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import yaml

from trueup.artifacts.artifact import A, Artifact, read_artifact
from trueup.artifacts.manifest import Finding as Finding
from trueup.artifacts.manifest import InputFile, Level, Manifest, OutputFile, ParentStage, StageVerdict
from trueup.config import StageConfig
from trueup.data.duplicates.rows import CONTAMINATION, NEAR_DUPLICATES, QUESTIONS, NearDuplicate, examples
from trueup.data.records import IDEALS, LEFT_OUT, Dropped, LeftOut, Message, write_rows
from trueup.data.split import opening_id, question
from trueup.errors import RunError
from trueup.files import PARTIAL, files_under, json_if_any, read_text, remove, sha256_file, write_atomically
from trueup.launching import processes
from trueup.provenance import seals
from trueup.provenance.contents import Contents, changed
from trueup.provenance.inputs import absolute, is_there, recorded, sha256_of
from trueup.provenance.masking import masked
from trueup.provenance.software import git_commit as _git_commit
from trueup.provenance.software import versions as _versions
from trueup.stages import (
    STAGES,
    address_from,
    campaign_dir,
    command,
    is_stage,
    place,
    round_dir,
    round_dirs,
    round_of,
)

MANIFEST = "manifest.json"
CONFIG = "config.yaml"
REPORT = "report.json"
BEGUN = "begun.json"
METRICS = "metrics.jsonl"
TRAINED = "trained_prompts.json"
LOG = "log.txt"
DATA_REPORT, DATA_PAGE = "data.json", "data.html"  # what sft and sample read
ANSWERED = f"answered{PARTIAL}"
"""The prompts that an unfinished sample stage has answered, in the order of the answers."""

DIRECTORIES = {name: stage.folder for name, stage in STAGES.items()}

OUTPUTS = {
    *(CONFIG, METRICS, TRAINED, QUESTIONS, LEFT_OUT, NEAR_DUPLICATES, REPORT, "report.html", DATA_REPORT, DATA_PAGE),
    *("model", "adapter", "steps", "judge", "runs"),  # TensorBoard's tracker writes `runs`
    *("samples.jsonl", "heldout.jsonl", "candidates.jsonl", "scores.jsonl", "candidate_scores.jsonl"),
    *("rankings.jsonl", "preferences.jsonl", "ties.jsonl", IDEALS, "demonstrations.jsonl"),
    *("mistakes.jsonl", CONTAMINATION),
}
"""Names of the files and folders that stages leave as results. A new result needs its name here."""
STORE = "labels.sqlite"


def is_output(path: Path, directory: Path) -> bool:
    """Whether a file under a stage's folder is one of its results."""
    parts = path.relative_to(directory).parts
    return parts[0] in OUTPUTS and not any(part.startswith("checkpoint") for part in parts)


def _is_scratch(path: Path) -> bool:
    """Whether only a stage at work needs this entry of its folder. `checkpoint-final` or a backup may be the user's."""
    unfinished = path.name
    while unfinished.endswith(PARTIAL):  # a scratch file may itself be half written
        unfinished = unfinished.removesuffix(PARTIAL)
    if unfinished != path.name:
        return unfinished in {*OUTPUTS, BEGUN, MANIFEST, "answered"} or unfinished.endswith((".answers", ".best"))
    return path.name == BEGUN or _is_checkpoint(path)


def _is_checkpoint(path: Path) -> bool:
    return re.fullmatch(r"checkpoint-\d+", path.name) is not None and path.is_dir()


def checkpoints(directory: Path) -> list[Path]:
    """The checkpoint folders of transformers, whole or not."""
    return [path for path in directory.iterdir() if _is_checkpoint(path)]


# ---- A finished stage -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FinishedStage:
    """A stage with a manifest."""

    stage: str
    dir: Path
    manifest: Manifest

    @property
    def run_dir(self) -> Path:
        """The folder of its round."""
        return self.dir.parent

    @property
    def parents(self) -> list[ParentStage]:
        """Its parents by their names in the campaign. Its manifest names them as seen from its round."""
        return [
            ParentStage(stage=address_from(self.run_dir, parent.stage), manifest_sha256=parent.manifest_sha256)
            for parent in self.manifest.parents
            if is_stage(parent.stage)
        ]

    def failure(self) -> str | None:
        """The sentence that the stage failed by its own verdict, with its reasons; None if it did not."""
        verdict = self.manifest.verdict
        if verdict.status != "fail":
            return None
        reasons = "; ".join(finding.message for finding in verdict.findings if finding.level == "fail")
        return f"{self.dir}: the {self.manifest.stage} stage's own verdict is fail ({reasons})"

    def report(self, schema: type[A]) -> A:
        """The report.json, as the stage's schema or a base of it; a RunError names the key that does not fit."""
        report = read_report(self.dir.parent, self.stage, schema)
        if report is None:
            raise RunError(f"{self.dir / REPORT}: missing; run `{command(self.run_dir, self.stage)}` again")
        return report

    @property
    def trained_prompts(self) -> set[str]:
        """`opening_id` of each dialogue that the stage trained on; empty for a stage that does not train."""
        path = self.dir / TRAINED
        return set(json.loads(read_text(path))) if path.exists() else set()

    @property
    def sha256(self) -> str:
        """Hash of the manifest, which has the hash of every output. It identifies the result."""
        return sha256_file(self.dir / MANIFEST)


def stage_dir(run_dir: Path, stage: str) -> Path:
    """The folder of a stage, as seen from a round's folder."""
    folder, name = place(run_dir, stage)
    return folder / DIRECTORIES[name]


def chosen_round(run_dir: Path, number: int | None, stage: str) -> Path:
    """The folder of the round that a command names by number, or by that round's folder; else of the newest in which
    the stage is finished."""
    if number is None and round_of(run_dir) == 1:
        return newest_round(run_dir, stage)
    return round_dir(run_dir, number or round_of(run_dir))


def newest_round(run_dir: Path, stage: str) -> Path:
    """The folder of the newest round in which the stage is finished, else of the first."""
    return next((path for path in reversed(round_dirs(run_dir)) if find_stage(path, stage)), campaign_dir(run_dir))


def find_stage(run_dir: Path, stage: str) -> FinishedStage | None:
    """The finished stage, or None."""
    path = stage_dir(run_dir, stage) / MANIFEST
    if path.parent.exists() and not path.parent.is_dir():
        raise RunError(f"{path.parent}: is not a folder, as the {stage} stage needs: move it elsewhere")
    manifest = read_artifact(path, Manifest, "a manifest", "delete it to make the stage run again")
    if manifest is None:
        return None
    if manifest.stage != place(run_dir, stage)[1]:
        raise RunError(f"{path}: is the manifest of {manifest.stage}; delete it to make {stage} run again")
    if outside := next((file.path for file in manifest.outputs if not _is_within(file.path)), None):
        raise RunError(f"{path}: names a result outside its folder, {outside!r}; delete it to make the stage run again")
    return FinishedStage(stage, path.parent, manifest)


def _is_within(path: str) -> bool:
    return not Path(path).is_absolute() and ".." not in Path(path).parts


def read_report(run_dir: Path, stage: str, schema: type[A]) -> A | None:
    """A stage's report.json, which is there before the manifest; None if there is none yet."""
    path = stage_dir(run_dir, stage) / REPORT
    return read_artifact(path, schema, f"a report of {stage}", f"run `{command(run_dir, stage)}` again")


def open_stage(run_dir: Path, stage: str) -> FinishedStage:
    """The finished stage; without one, a RunError says what to run."""
    result = find_stage(run_dir, stage)
    if result is None:
        directory = stage_dir(run_dir, stage)
        state = "is unfinished" if directory.exists() else "is not there"
        raise RunError(
            f"{directory} {state}: run `{command(run_dir, stage)}` first, or `trueup run CONFIG` for the whole sequence"
        )
    return result


# ---- A stage at work --------------------------------------------------------------------------------------------


@dataclass
class StageRun:
    """A stage at work in its folder. It collects the content of the manifest."""

    config: StageConfig
    dir: Path
    """Where this process writes: the stage's folder, or of all processes but the first another one."""
    resumed: bool
    """Whether it continues an interrupted run of the same identity, with its checkpoints."""
    parents: list[FinishedStage]
    started: float = field(default_factory=time.time)
    inputs: list[InputFile] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    near_duplicates: list[NearDuplicate] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    contents: dict[str, Contents | None] = field(default_factory=dict)
    """The config's contents when the stage began."""
    facts: dict[str, object] = field(default_factory=dict)
    """Further keys of the manifest: device, dtype, tokens_per_s, ..."""
    openings: Any = ()
    """Numbers of the dialogues that it trains on, see `trained_on`."""
    shared: Path | None = None
    """The stage's folder, where `dir` is another one."""

    @property
    def home(self) -> Path:
        """The stage's folder, with the checkpoints, which all processes share."""
        return self.shared or self.dir

    def add_input(self, path: Path, rows: int, dropped: Dropped | None = None) -> None:
        """Record an input file, the number of its rows that were used, and why others were not.

        Bad rows that the config allows to drop are set aside in left_out.jsonl.
        """
        files = recorded(path)
        self.inputs.append(
            InputFile(
                path=str(absolute(path)),  # so that `verify` finds it from any directory
                sha256=sha256_of(path, files),
                files=files,
                rows=rows,
                dropped=dict(dropped.counts) if dropped else {},
                columns_not_read=dropped.most_ignored(100) if dropped else {},
            )
        )
        if dropped is not None:
            self.keep_aside(dropped)

    def keep_aside(self, dropped: Dropped) -> None:
        """Write the dropped bad rows to left_out.jsonl, each with its place and the reason."""
        if dropped.left_out:
            self.left_out += dropped.left_out
            write_rows(self.dir / LEFT_OUT, self.left_out)

    def leave_out_near(self, rows: Sequence[NearDuplicate], what: str) -> None:
        """List rows in near_duplicates.jsonl that are not trained on, with a finding that says how many of `what`."""
        if rows:
            self.near_duplicates += rows
            write_rows(self.dir / NEAR_DUPLICATES, self.near_duplicates)
            why = f"since they are {rows[0].reason}: {examples(rows)}"
            self.find("info", "near_duplicates", f"{len(rows)} {what} are left out, {why}")

    def trained_on(self, dialogues: Iterable[list[Message]]) -> None:
        """Record the dialogues that this stage trains on, so that a comparison can prove that it uses none of them: by
        `opening_id` and by their first questions, since a held-out prompt must not even begin like one of them."""
        questions = {int(opening_id(messages), 16): question(messages) for messages in dialogues}
        self.trained_on_openings(list(questions), questions.values())

    def trained_on_openings(self, openings: Any, questions: Iterable[str]) -> None:
        """The same by the `opening_id` of each as a number, in a sequence or an array, and by its first question."""
        import numpy as np  # the plan needs none

        with (self.dir / QUESTIONS).open("a" if len(self.openings) else "w", encoding="utf-8") as file:
            file.writelines(json.dumps({"question": text}) + "\n" for text in questions)
        of_before, of_now = (np.asarray(numbers, dtype=np.uint64) for numbers in (self.openings, openings))
        self.openings = np.union1d(of_before, of_now)
        lines = (f'{"," if n else "["}\n  "{number:016x}"' for n, number in enumerate(self.openings))
        write_atomically(self.dir / TRAINED, chain(lines, ["\n]\n" if len(self.openings) else "[]\n"]))

    def find(self, level: Level, code: str, message: str) -> None:
        """Add a finding; the stage's verdict is the worst level among them."""
        self.findings.append(Finding(level, code, message))

    def log(self, row: Mapping[str, object]) -> None:
        """Append a row to metrics.jsonl."""
        with (self.dir / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def write_report(self, report: Artifact) -> None:
        write_atomically(self.dir / REPORT, report.text())

    def write_json(self, name: str, value: Any) -> None:
        write_atomically(self.dir / name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    @property
    def verdict(self) -> StageVerdict:
        levels = {finding.level for finding in self.findings}
        status: Literal["pass", "warn", "fail"] = "fail" if "fail" in levels else "warn" if "warn" in levels else "pass"
        return StageVerdict(status=status, findings=self.findings)

    def manifest(self, outputs: list[OutputFile]) -> Manifest:
        """The manifest as of now; a stage at work has no outputs yet."""
        facts = {
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
            "parents": [ParentStage(stage=parent.stage, manifest_sha256=parent.sha256) for parent in self.parents],
            "inputs": self.inputs,
            "outputs": outputs,
            # The stage read the contents at its beginning; a hub model may have been fetched since.
            "contents": {**self.config.contents(), **{key: of for key, of in self.contents.items() if of is not None}},
            "fingerprint": self.config.fingerprint(),
            "verdict": self.verdict,
            **self.facts,
        }
        return Manifest.model_validate(facts)

    def finish(self) -> Path:
        """Hash the outputs, seal and write the manifest, and remove the checkpoints. Returns the folder."""
        processes.wait()  # one that fails leaves the stage unfinished
        if processes.rank():
            return self.home
        for checkpoint in checkpoints(self.dir):
            remove(checkpoint)
        outputs = sorted(p for p in self.dir.rglob("*") if p.is_file() and is_output(p, self.dir))
        files = [OutputFile(path=str(p.relative_to(self.dir)), sha256=sha256_file(p)) for p in outputs]
        text = sealed_text(self.manifest(files).plain())
        # Seal first: a stage that is killed in between is unfinished, and its next seal counts.
        campaign = campaign_dir(self.config.run_dir)
        seals.append(campaign, self.config.address, hashlib.sha256(text.encode()).hexdigest())
        write_atomically(self.dir / MANIFEST, text)
        (self.dir / BEGUN).unlink(missing_ok=True)
        return self.dir


def sealed_text(manifest: Mapping[str, object]) -> str:
    """The text of a manifest. Its last key is the hash of all others, since no other file has the manifest's hash."""
    content = {key: value for key, value in manifest.items() if key != "content_sha256"}
    seal = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps({**content, "content_sha256": seal}, indent=2, ensure_ascii=False) + "\n"


def begin(config: StageConfig) -> StageRun:
    """Open the folder of a stage. Checkpoints stay only if an interrupted run had the same identity."""
    parents = [open_stage(config.run_dir, name) for name in config.parents()]
    home = stage_dir(config.run_dir, config.stage)
    resumed = processes.agreed(lambda: _prepare(config, parents, home))
    own = processes.folder_for(home, resumed)
    return StageRun(config, own, resumed, parents, contents=config.contents(), shared=home)


def _prepare(config: StageConfig, parents: list[FinishedStage], home: Path) -> bool:
    """Whether the stage goes on where it was interrupted; otherwise its folder is cleared."""
    resumed = resumable(config)
    if not resumed:
        _clear(config.run_dir, config.stage)
        home.mkdir(parents=True, exist_ok=True)
        write_atomically(home / BEGUN, _begun(config, parents).text())
    write_atomically(
        home / CONFIG,
        yaml.safe_dump({config.stage: masked(config.model_dump(mode="json"))}, sort_keys=False, allow_unicode=True),
    )
    return resumed


def resumable(config: StageConfig) -> bool:
    """Whether the stage was interrupted and now has the same config, inputs and parents as then."""
    directory = stage_dir(config.run_dir, config.stage)
    if (directory / MANIFEST).exists() or not (directory / BEGUN).exists():
        return False
    parents = [find_stage(config.run_dir, name) for name in config.parents()]
    now = _begun(config, [parent for parent in parents if parent])
    try:
        before = Begun.model_validate_json(read_text(directory / BEGUN))
    except (OSError, ValueError):
        return False
    return not changed(before.contents, now.contents) and before == now.model_copy(update={"contents": before.contents})


class Begun(Artifact):
    """begun.json: what an unfinished stage was begun from."""

    config_sha256: str
    parents: list[str]
    """Hashes of their manifests."""
    inputs: list[str]
    """Hashes of the files that are read."""
    contents: dict[str, Contents | None]


def _begun(config: StageConfig, parents: list[FinishedStage]) -> Begun:
    return Begun(
        config_sha256=config.sha256(),
        parents=[parent.sha256 for parent in parents],
        inputs=[sha256_of(path) for path in [*config.input_paths(), *config.also_read()] if is_there(path)],
        contents=config.contents(),
    )


def _clear(run_dir: Path, stage: str) -> None:
    """Remove what an earlier run of the stage left, the manifest first, so that there is never a false result.

    Raises RunError, and removes nothing, if there is something in the way that the stage did not write.
    """
    directory, campaign, name = stage_dir(run_dir, stage), campaign_dir(run_dir), address_from(run_dir, stage)
    entries = list(directory.iterdir()) if directory.is_dir() else []
    ours = [path for path in entries if path.name in OUTPUTS or _is_scratch(path)]
    if ours and not any((directory / name).exists() for name in (MANIFEST, BEGUN)) and not seals.last(campaign, name):
        raise RunError(
            f"{ours[0]}: is in the way of the {stage} stage, which did not write it: move it elsewhere, or give the "
            "campaign another run_dir"
        )
    manifest = json_if_any(directory / MANIFEST)
    if isinstance(manifest, dict) and isinstance(manifest.get("outputs"), list):
        paths = {entry.get("path") for entry in manifest["outputs"] if isinstance(entry, dict)}
        for path in (file for top in ours if not _is_scratch(top) for file in files_under(top)):
            if str(path.relative_to(directory)) not in paths:
                raise RunError(f"{path}: the {stage} stage did not write it and would remove it: move it elsewhere")
    (directory / MANIFEST).unlink(missing_ok=True)
    if (last := seals.last(campaign, name)) and last.manifest_sha256:
        seals.append(campaign, name, None)
    for path in ours:
        remove(path)

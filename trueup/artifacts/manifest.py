"""The manifest of a finished stage: its inputs, its parents, its outputs, and its verdict.

Every stage writes `manifest.json` last (`trueup.runs`), so that a folder with one is a finished stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trueup.artifacts.artifact import Artifact, absent
from trueup.files import Json
from trueup.provenance.contents import Contents

Level = Literal["info", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One thing that a stage says about its own result."""

    level: Level
    code: str
    """A name for programs, such as `few_labels`."""
    message: str


class StageVerdict(Artifact):
    """What a stage concludes about itself."""

    status: Literal["pass", "warn", "fail"]
    """The worst level among the findings."""
    findings: list[Finding]


class OutputFile(Artifact):
    """A file that the stage left."""

    path: str
    """Relative to the stage's folder."""
    sha256: str


class InputFile(Artifact):
    """A file that the stage read."""

    path: str
    """Absolute path of a file, a folder or a pattern, so that `trueup verify` finds it from any directory."""
    sha256: str
    """Of a folder or a pattern, the hash of `files`."""
    files: dict[str, str] | None = absent()
    """The hash of each file that the path stands for, if it is no file itself."""
    rows: int
    """Rows that were used."""
    dropped: dict[str, int]
    """Rows that were not used, counted by reason."""
    columns_not_read: dict[str, int]
    """Columns that no reader knows, with the number of rows that have them."""


class ParentStage(Artifact):
    """A stage whose result this stage used."""

    stage: str
    manifest_sha256: str


class MergeCheck(Artifact):
    """The differences in logits between a model with its adapter and the model with the adapter folded in."""

    rows: int
    """Rows on which the logits were compared."""
    max_logit_change: float
    """Largest change of a logit by training."""
    max_logit_difference: float
    """Largest change of a logit by folding in."""
    saved_dtype: str
    read_dtype: str | None = absent()
    """The precision in which later stages read the weights, if it is lower."""
    max_logit_difference_as_read: float | None = absent()
    lost_as_read: float | None = absent()
    """Share of the training's change that the lower precision loses."""


class StoreProof(Artifact):
    """A hash of the events that a label stage read from its store, to compare the store with later."""

    last_event: int
    sha256: str


class LabelCounts(Artifact):
    """The number of labels, by source and by split."""

    by_source: dict[str, int]
    by_split: dict[str, int]
    pairs: dict[str, int]
    """Strict pairs by split."""
    ties: int
    skips: dict[str, int]
    """Skipped items by source."""


class Manifest(Artifact):
    """manifest.json. Only some stages have the keys after `verdict`."""

    stage: str
    status: Literal["complete"]
    started_utc: str
    duration_s: float
    device: str
    dtype: str | None
    """Precision of the weights; null without a model."""
    seed: int
    git_commit: str | None
    """The commit of Trueup, if it runs from a checkout."""
    versions: dict[str, str]
    """Versions of Python and of the libraries that results depend on."""
    config_sha256: str
    identity: Json
    """The resolved config without secrets and places; its keys are those of the stage's section."""
    parents: list[ParentStage]
    inputs: list[InputFile]
    outputs: list[OutputFile]
    contents: dict[str, Contents | None]
    """Hashes of files that the config names and that are no inputs, by key: {file: SHA-256}."""
    fingerprint: dict[str, str | None]
    """Hashes of all else that the result depends on: a label store, a rubric's code."""
    verdict: StageVerdict
    attention: str | None = absent()
    """The implementation of attention."""
    processes: int | None = absent()
    """Processes that trained together, if they were several."""
    steps: int | None = absent()
    """Optimiser steps; for an alignment, up to the chosen step."""
    tokens_per_s: float | None = absent()
    trained_parameters: int | None = absent()
    chat_template: str | None = absent()
    """The chat template of the policy, its end of turn and its pad token, and why they were chosen."""
    base_model: str | None = absent()
    merge: MergeCheck | None = absent()
    store: StoreProof | None = absent()
    labels: LabelCounts | None = absent()
    content_sha256: str | None = absent()
    """Hash of all other keys, because no other file in the folder has the manifest's own hash."""

    def parent_sha256(self, stage: str) -> str | None:
        """Hash of this parent's manifest, if the stage used its result."""
        return next((parent.manifest_sha256 for parent in self.parents if parent.stage == stage), None)

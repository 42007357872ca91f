"""The manifest of a finished stage: what it read, what it was made from, what it left, and what it concluded.

Every stage writes `manifest.json` last (`trueup.runs`), so that a folder with one is a finished stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from trueup.artifacts.artifact import Artifact, absent
from trueup.provenance.contents import Contents

Level = Literal["info", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One thing that a stage found about its own result."""

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
    """Absolute, so that `trueup verify` finds it from everywhere."""
    sha256: str
    rows: int
    """Rows that were used."""
    dropped: dict[str, int]
    """Rows that were not used, counted by reason."""
    columns_not_read: dict[str, int]
    """Columns that no reader knows, with the number of rows that have them."""


class ParentStage(Artifact):
    """A stage whose result this one was made from."""

    stage: str
    manifest_sha256: str


class MergeCheck(Artifact):
    """How alike a model under its adapter and the model with the adapter folded in are, by their logits."""

    rows: int
    """Rows that both read."""
    max_logit_change: float
    """The most that training changed a logit."""
    max_logit_difference: float
    """The most that folding in changed a logit."""
    saved_dtype: str
    read_dtype: str | None = absent()
    """The precision that later stages read the weights in, where it is a lower one."""
    max_logit_difference_as_read: float | None = absent()
    lost_as_read: float | None = absent()
    """Share of what training changed that the lower precision takes away."""


class StoreProof(Artifact):
    """What a label stage had read of its store, as a hash that the store can be held against later."""

    last_event: int
    sha256: str


class LabelCounts(Artifact):
    """How many labels there are, as whoever reads the manifest wants to know first."""

    by_source: dict[str, int]
    by_split: dict[str, int]
    pairs: dict[str, int]
    """Strict pairs by split."""
    ties: int
    skips: dict[str, int]
    """Skipped items by source."""


class Manifest(Artifact):
    """manifest.json. The keys after `verdict` are there for the stages that have something to say under them."""

    stage: str
    status: Literal["complete"]
    started_utc: str
    duration_s: float
    device: str
    dtype: str | None
    """Precision of the weights; null where no model was read."""
    seed: int
    git_commit: str | None
    """The commit of Trueup, where it runs from a checkout."""
    versions: dict[str, str]
    """Python's, and those of the libraries that results depend on."""
    config_sha256: str
    identity: dict[str, Any]
    """The resolved config without secrets and places; its keys are those of the stage's section."""
    parents: list[ParentStage]
    inputs: list[InputFile]
    outputs: list[OutputFile]
    contents: dict[str, Contents | None]
    """By key of the config, what lay under a name that is no input file: {file: SHA-256}."""
    fingerprint: dict[str, str | None]
    """Whatever else the result depends on: a label store, a rubric's text."""
    verdict: StageVerdict
    attention: str | None = absent()
    """The implementation of attention."""
    steps: int | None = absent()
    """Optimiser steps; of an alignment, up to the step that was kept."""
    tokens_per_s: float | None = absent()
    trained_parameters: int | None = absent()
    base_model: str | None = absent()
    merge: MergeCheck | None = absent()
    store: StoreProof | None = absent()
    labels: LabelCounts | None = absent()
    content_sha256: str | None = absent()
    """Hash of all other keys, since no other file in the folder states the manifest's own hash."""

    def parent_sha256(self, stage: str) -> str | None:
        """Hash of the manifest of this parent, when the stage was made from it."""
        return next((parent.manifest_sha256 for parent in self.parents if parent.stage == stage), None)

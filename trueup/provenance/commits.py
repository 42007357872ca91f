"""Commits of hub ids: a run stays at the one that it began with, whichever way a branch moves meanwhile. No torch.

`hub.json` in the run directory has the commit of each hub id, so that all stages of a run load the same files, in
whichever process and on whichever day they run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlencode

from trueup.files import read_text, write_atomically

COMMITS = "hub.json"
DEFAULT_BRANCH = "main"
DATASETS = "datasets/"
"""What the hub puts before the id of a data set."""


@dataclass(frozen=True)
class HubId:
    """A hub id as the campaign file names it."""

    name: str
    """`owner/name` of a model; `datasets/owner/name` of a data set."""
    revision: str | None = None
    key: str = "model.name"
    beside: Path | None = None
    """The folder of the campaign file, in which a folder of like name may be meant."""
    subset: str | None = None
    split: str | None = None
    """Of a data set, the rows that are wanted."""

    @property
    def revision_key(self) -> str:
        """The key of the branch, tag or commit: `model.revision`, `model.adapter_revision`, and for a data set the key
        of its path."""
        if self.is_dataset:
            return self.key
        return f"{self.key.removesuffix('.name')}{'.' if self.key.endswith('.name') else '_'}revision"

    @property
    def is_dataset(self) -> bool:
        """Whether rows are wanted, and no model."""
        return self.name.startswith(DATASETS)

    @property
    def id(self) -> str:
        """`owner/name`, as the hub and the campaign file have it."""
        return self.name.removeprefix(DATASETS)

    @property
    def what(self) -> str:
        return "data set" if self.is_dataset else "adapter" if self.is_adapter else "model"

    @property
    def is_adapter(self) -> bool:
        """Whether an adapter is wanted, and not a model."""
        return self.key.endswith(".adapter")

    @property
    def revision_text(self) -> str:
        """The value of `revision_key`: the revision, or a data set's whole path."""
        if not self.is_dataset:
            return self.revision or ""
        part = urlencode({key: text for key, text in (("subset", self.subset), ("split", self.split)) if text})
        return f"hf://datasets/{self.id}@{self.revision or DEFAULT_BRANCH}{f'?{part}' if part else ''}"

    def at(self, commit: str) -> HubId:
        """The same hub id at a commit."""
        return replace(self, revision=commit)


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a whole commit hash, which never moves."""
    return re.fullmatch("[0-9a-f]{40}", revision or "") is not None


def of_run(run_dir: Path, hub_id: HubId) -> str | None:
    """The commit of a hub id's branch or tag that the run stays at; None if it has none yet."""
    commit = _read(run_dir).get(_key(hub_id))
    return commit if isinstance(commit, str) and is_commit(commit) else None


def keep(run_dir: Path, hub_id: HubId, commit: str) -> None:
    """Let the run stay at this commit from now on."""
    commits = _read(run_dir)
    if commits.get(_key(hub_id)) != commit:
        text = json.dumps({**commits, _key(hub_id): commit}, indent=2, sort_keys=True)
        write_atomically(run_dir / COMMITS, text + "\n")


def cached(cache: Path, name: str, revision: str | None) -> str | None:
    """A hub id's commit in the hub's local cache; a branch has the commit that it pointed to when it was fetched."""
    folder = repository(cache, name)
    if revision and (folder / "snapshots" / revision).is_dir():
        return revision
    try:
        return (folder / "refs" / (revision or DEFAULT_BRANCH)).read_text(encoding="utf-8").strip() or None
    except (OSError, ValueError):
        return None


def remember(cache: Path, name: str, revision: str | None, commit: str) -> None:
    """Note the commit of a branch or tag in the hub's local cache, as the hub's own library does."""
    if cached(cache, name, revision) != commit:
        path = repository(cache, name) / "refs" / (revision or DEFAULT_BRANCH)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, commit, by_process=True)


def repository(cache: Path, name: str) -> Path:
    """A hub id's folder in the hub's local cache: snapshots/COMMIT/ with its files, and refs/BRANCH."""
    kind = "datasets" if name.startswith(DATASETS) else "models"
    return cache / f"{kind}--{name.removeprefix(DATASETS).replace('/', '--')}"


def in_words(section: Mapping[str, object], name: str = "name", revision: str = "revision") -> str:
    """What a section of a manifest names, for people: `owner/name at commit HASH`, or the name alone."""
    commit = section.get(revision)
    return f"{section[name]} at commit {commit}" if commit else str(section[name])


def _key(hub_id: HubId) -> str:
    return f"{hub_id.name}@{hub_id.revision or DEFAULT_BRANCH}"


def _read(run_dir: Path) -> dict[str, object]:
    try:
        commits = json.loads(read_text(run_dir / COMMITS))
    except (OSError, ValueError):
        return {}
    return commits if isinstance(commits, dict) else {}

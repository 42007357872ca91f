"""A model of a hub: its branch or tag is settled on one commit, and that commit's files are fetched whole.

`settle` asks the hub once per command. Everything else works on the commit: its files lie in a folder of the hub's
local cache (snapshots/COMMIT), and each is there with its whole size or is fetched again. The list of a commit's files
never changes, so it is asked once and kept in Trueup's own cache.

The hub's own exceptions become one sentence each in `trueup.models.sources.refusals`.
"""

from __future__ import annotations

import glob
import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from trueup.console import say
from trueup.errors import ModelError
from trueup.files import write_atomically
from trueup.models.config import ModelConfig
from trueup.models.sources.refusals import HubId, refusal, unfit
from trueup.provenance import commits
from trueup.provenance.contents import OF_A_MODEL, cache_dir

INDEX = "model.safetensors.index.json"
_SECONDS = 10.0
"""Longest wait for the hub's answer about a model."""


@dataclass(frozen=True)
class HubFile:
    """A file of a repository, as the hub lists it."""

    size: int | None
    hash: str | None
    """Git's hash, or the SHA-256 of a large file."""


Listing = dict[str, HubFile]
"""All files of a commit by name."""


@dataclass(frozen=True)
class Settled:
    """The commit of a hub id, and a sentence if it is not simply the branch's newest."""

    commit: str
    note: str = ""


def of_base(config: ModelConfig, beside: Path | None = None) -> HubId:
    """The hub id of the base model; `beside` is the folder of the campaign file."""
    return HubId(config.name, config.revision, beside=beside)


def settle(hub_id: HubId, run_dir: Path | None = None) -> Settled:
    """The commit that a hub id stands for in a run.

    The hub is asked where a branch or tag points to. If it has moved and no file that counts has changed, the run stays
    where it is. If the hub cannot be asked, the run stays too, and what is on this machine counts.
    """
    name, revision = hub_id.name, hub_id.revision
    pinned = commits.of_run(run_dir, name, revision) if run_dir else None
    if revision and commits.is_commit(revision):
        pinned = revision
        if not lacking(name, revision):
            return Settled(revision)
    known = pinned or commits.cached(_cache(), name, revision)
    try:
        commit, listing = _ask(name, revision)
    except Exception as error:
        refused = refusal(hub_id, error, _lack(name, known))
        if known and (pinned == known or not lacking(name, known)):
            stays = f"the run stays at commit {known[:7]}" if pinned else f"commit {known[:7]} counts, which is here"
            return Settled(known, f"{name}: {refused.found}; {stays}")
        raise ModelError(refused.text) from error
    if problem := unfit(hub_id, listing):
        raise ModelError(problem)
    branch = revision or commits.DEFAULT_BRANCH
    moved = f"{name}: {branch} has moved from {(known or commit)[:7]} to {commit[:7]}"
    if known and known != commit and _same_files(_kept_listing(name, known), listing):
        return Settled(known, f"{moved}, and no file that counts has changed: {known[:7]} stays")
    if not commits.is_commit(revision):
        commits.remember(_cache(), name, revision, commit)
    if known in (None, commit):
        return Settled(commit)
    return Settled(commit, f"{moved} (model.revision: {known} keeps the old files)" if pinned else "")


def fetch(hub_id: HubId, weights: bool = True) -> Path:
    """The folder with the files of a hub id's commit, each of them whole. What is not there yet is fetched.

    weights  False: all but the weights, which is enough to tell what the model is
    """
    name = hub_id.name
    commit = hub_id.revision if hub_id.revision and commits.is_commit(hub_id.revision) else settle(hub_id).commit
    # The index comes first, since it names the files of the weights.
    for part in (False, True) if weights else (False,):
        if files := lacking(name, commit, weights=part):
            _download(hub_id, commit, files)
    return folder(name, commit)


def folder(name: str, commit: str) -> Path:
    """The commit's folder in the hub's local cache."""
    return commits.repository(_cache(), name) / "snapshots" / commit


def lacking(name: str, commit: str, weights: bool = True) -> list[str]:
    """The files of a commit that count and are not on this machine, or not whole."""
    place, listing = folder(name, commit), _kept_listing(name, commit)
    if listing is None:  # another program fetched it
        needed = ["config.json", *([] if _has_tokenizer(place) else ["tokenizer.json"])]
        return [file for file in (*needed, *(_weights(place, None) if weights else [])) if not (place / file).is_file()]
    files = [file for file in listing if _counts(file)] + (_weights(place, listing) if weights else [])
    return [file for file in files if not _is_whole(place / file, listing[file].size if file in listing else None)]


def weight_bytes(name: str, commit: str) -> int:
    """The size of the weights, as far as it is known."""
    listing = _kept_listing(name, commit) or {}
    return sum(listing[file].size or 0 for file in _weights(folder(name, commit), listing) if file in listing)


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _is_whole(path: Path, size: int | None) -> bool:
    return path.is_file() and size in (None, path.stat().st_size)


def _counts(file: str) -> bool:
    """Whether a file of a repository, other than its weights, affects results: those at its top, templates and code."""
    path = Path(file)
    at_its_place = len(path.parts) == 1 or path.parts[0] == "additional_chat_templates" or path.suffix == ".py"
    return at_its_place and path.suffix in OF_A_MODEL and path.suffix not in (".safetensors", ".gguf")


def _weights(place: Path, listing: Listing | None) -> list[str]:
    """The files with the weights: one, or those that the index names. A repository may hold the same weights twice."""
    is_one = (place / "model.safetensors").is_file() if listing is None else "model.safetensors" in listing
    if not is_one:
        with suppress(OSError, ValueError, KeyError, AttributeError):
            index = json.loads((place / INDEX).read_text(encoding="utf-8"))["weight_map"]
            return sorted(set(index.values()))
    return ["model.safetensors"]


def _has_tokenizer(place: Path) -> bool:
    return any((place / file).is_file() for file in ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json"))


def _lack(name: str, commit: str | None) -> str:
    """What of a model this machine has not, as a part of a sentence."""
    files = lacking(name, commit) if commit else []
    is_begun = commit and folder(name, commit).is_dir() and any(folder(name, commit).iterdir())
    if not is_begun:
        return "the model is not on this machine"
    return f"only a part of the model is on this machine ({files[0]} is missing or cut off)" if files else ""


# ---- Asking and fetching ----------------------------------------------------------------------------------------


def _ask(name: str, revision: str | None) -> tuple[str, Listing]:
    """The commit that a branch or tag points to, and its files."""
    from huggingface_hub import HfApi

    info = HfApi().model_info(name, revision=revision, files_metadata=True, timeout=_SECONDS)
    if not info.sha or info.siblings is None:
        raise ValueError("its answer names no commit or no files")
    listing = {
        file.rfilename: HubFile(file.lfs.size if file.lfs else file.size, file.lfs.sha256 if file.lfs else file.blob_id)
        for file in info.siblings
    }
    path = _listing_path(name, info.sha)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({file: asdict(entry) for file, entry in listing.items()})
    write_atomically(path, text, by_process=True)
    return info.sha, listing


def _listing_path(name: str, commit: str) -> Path:
    return cache_dir() / "hub" / name.replace("/", "--") / f"{commit}.json"


def _kept_listing(name: str, commit: str) -> Listing | None:
    """A commit's files, if the hub was asked before."""
    try:
        listed = json.loads(_listing_path(name, commit).read_text(encoding="utf-8"))
        return {file: HubFile(entry["size"], entry["hash"]) for file, entry in listed.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _same_files(before: Listing | None, now: Listing) -> bool:
    """Whether all files of two commits that affect results are equal: not its card, nor its pictures."""

    def hashes(listing: Listing) -> dict[str, str | None]:
        return {file: entry.hash for file, entry in listing.items() if Path(file).suffix in OF_A_MODEL}

    return before is not None and None not in hashes(now).values() and hashes(before) == hashes(now)


def _download(hub_id: HubId, commit: str, files: list[str]) -> None:
    """Fetch files of a commit. The hub's library gives a file its name only when it is whole."""
    from huggingface_hub import hf_hub_download, snapshot_download

    name = hub_id.name
    try:
        listing = _kept_listing(name, commit) or _ask(name, commit)[1]
        if problem := unfit(hub_id, listing):
            raise ModelError(problem)
        size = sum(listing[file].size or 0 for file in files if file in listing)
        say(f"{'fetching':<12} {name} at {commit[:7]}: {len(files)} files, {size / 1e6:,.1f} MB")
        cut_off = [file for file in files if (folder(name, commit) / file).is_file()]
        snapshot_download(name, revision=commit, allow_patterns=[glob.escape(file) for file in files])
        for file in cut_off:
            hf_hub_download(name, file, revision=commit, force_download=True)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(refusal(hub_id, error, _lack(name, commit)).text) from error
    if missing := [file for file in files if file in lacking(name, commit)]:
        raise ModelError(
            f"{hub_id.key}: {name}: {missing[0]} of commit {commit[:7]} could not be fetched whole: try again"
        )

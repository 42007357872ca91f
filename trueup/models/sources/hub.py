"""A model of a hub: its branch or tag is settled on one commit, and that commit's files are fetched whole.

`settle` asks the hub once per command. Everything else works on the commit: its files lie in a folder of the hub's
local cache (snapshots/COMMIT), and each is there with its whole size or is fetched again. The list of a commit's files
never changes, so it is asked once and kept in Trueup's own cache.

The hub's own exceptions become one sentence each in `trueup.models.sources.refusals`.
"""

from __future__ import annotations

import glob
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from trueup.console import say
from trueup.errors import DataError, ModelError
from trueup.files import write_atomically
from trueup.models.sources.refusals import refusal, unfit
from trueup.provenance import commits, inputs
from trueup.provenance.commits import HubId
from trueup.provenance.contents import OF_A_MODEL, cache_dir
from trueup.provenance.inputs import CARD

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


def settle(hub_id: HubId, run_dir: Path | None = None) -> Settled:
    """The commit that a hub id stands for in a run.

    The hub is asked where a branch or tag points to. If it has moved and no file that counts has changed, the run stays
    where it is. If the hub cannot be asked, the run stays too, and what is on this machine counts.
    """
    name, revision = hub_id.name, hub_id.revision
    pinned = commits.of_run(run_dir, hub_id) if run_dir else None
    if revision and commits.is_commit(revision):
        pinned = revision
        if hub_id.is_dataset or not lacking(hub_id):
            return Settled(revision)
    known = pinned or commits.cached(_cache(), name, revision)
    try:
        commit, listing = _ask(hub_id)
    except Exception as error:
        refused = refusal(hub_id, error, _lack(hub_id, known))
        if known and (pinned == known or hub_id.is_dataset or not lacking(hub_id.at(known))):
            stays = f"the run stays at commit {known[:7]}" if pinned else f"commit {known[:7]} counts, which is here"
            return Settled(known, f"{hub_id.id}: {refused.problem}; {stays}")
        raise ModelError(refused.text) from error
    if problem := unfit(hub_id, listing):
        raise ModelError(problem)
    branch = revision or commits.DEFAULT_BRANCH
    moved = f"{hub_id.id}: {branch} has moved from {(known or commit)[:7]} to {commit[:7]}"
    if known and known != commit and _same_files(_kept_listing(hub_id.at(known)), listing, hub_id):
        return Settled(known, f"{moved}, and no file that counts has changed: {known[:7]} stays")
    if not commits.is_commit(revision):
        commits.remember(_cache(), name, revision, commit)
    if known in (None, commit):
        return Settled(commit)
    return Settled(
        commit,
        f"{moved} ({hub_id.revision_key}: {hub_id.at(known).revision_text} keeps the old files)" if pinned else "",
    )


def fetch(hub_id: HubId, weights: bool = True) -> Path:
    """The folder with the files of a hub id's commit, each of them whole. What is not there yet is fetched.

    weights  False: all but the weights, which is enough to tell what the model is
    """
    if not commits.is_commit(hub_id.revision):
        hub_id = hub_id.at(settle(hub_id).commit)
    if _kept_listing(hub_id) is None and hub_id.is_dataset and not folder(hub_id).is_dir():
        with _one_sentence(hub_id):
            _ask(hub_id)
    # The index comes first, since it names the files of the weights.
    for part in (False, True) if weights else (False,):
        if files := lacking(hub_id, weights=part):
            _download(hub_id, files)
    return folder(hub_id)


def folder(hub_id: HubId) -> Path:
    """The folder of a hub id's commit in the hub's local cache."""
    return commits.repository(_cache(), hub_id.name) / "snapshots" / str(hub_id.revision)


def lacking(hub_id: HubId, weights: bool = True) -> list[str]:
    """The files of a hub id's commit that count and are not on this machine, or not whole."""
    place, listing = folder(hub_id), _kept_listing(hub_id)
    if hub_id.is_dataset:
        files = _of_dataset(hub_id, listing, rows=weights)
        sizes = {file: entry.size for file, entry in (listing or {}).items()}
        return [file for file in files if not _is_whole(place / file, sizes.get(file))]
    files = _weights(hub_id, listing) if weights else []
    if listing is None:  # another program fetched it
        return [file for file in (*_settings(hub_id), *files) if not (place / file).is_file()]
    files = [file for file in listing if _counts(file)] + files
    return [file for file in files if not _is_whole(place / file, listing[file].size if file in listing else None)]


def weight_bytes(hub_id: HubId) -> int:
    """The size of the weights of a hub id's commit, as far as it is known."""
    listing = _kept_listing(hub_id) or {}
    return sum(listing[file].size or 0 for file in _weights(hub_id, listing) if file in listing)


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


def _of_dataset(hub_id: HubId, listing: Listing | None, rows: bool) -> list[str]:
    """The files of a data set that are wanted: its card, and then those with the rows of one split."""
    there = listing if listing is not None else inputs.files_under(folder(hub_id))
    card = [CARD] if CARD in there else []
    try:
        return card + inputs.chosen_files(hub_id, folder(hub_id), there) if rows else card
    except DataError as error:
        raise ModelError(f"{hub_id.key}: {hub_id.id}: {error}") from None


def _settings(hub_id: HubId) -> list[str]:
    """The least that is needed besides weights."""
    if hub_id.is_adapter:
        return ["adapter_config.json"]
    return ["config.json", *([] if _has_tokenizer(folder(hub_id)) else ["tokenizer.json"])]


def _weights(hub_id: HubId, listing: Listing | None) -> list[str]:
    """The files with the weights: one, or those that the index names. A repository may hold the same weights twice."""
    if hub_id.is_adapter:
        return ["adapter_model.safetensors"]
    place = folder(hub_id)
    is_one = (place / "model.safetensors").is_file() if listing is None else "model.safetensors" in listing
    if not is_one:
        with suppress(OSError, ValueError, KeyError, AttributeError):
            index = json.loads((place / INDEX).read_text(encoding="utf-8"))["weight_map"]
            return sorted(set(index.values()))
    return ["model.safetensors"]


def _has_tokenizer(place: Path) -> bool:
    return any((place / file).is_file() for file in ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json"))


def _lack(hub_id: HubId, commit: str | None) -> str:
    """What of a model or adapter this machine has not, as a part of a sentence."""
    what = hub_id.what
    place = folder(hub_id.at(commit)) if commit else None
    if commit is None or place is None or not place.is_dir() or not any(place.iterdir()):
        return f"the {what} is not on this machine"
    files = [] if hub_id.is_dataset else lacking(hub_id.at(commit))
    return f"only a part of the {what} is on this machine ({files[0]} is missing or cut off)" if files else ""


# ---- Asking and fetching ----------------------------------------------------------------------------------------


def _ask(hub_id: HubId) -> tuple[str, Listing]:
    """The commit that a branch or tag points to, and its files."""
    from huggingface_hub import HfApi

    ask = HfApi().dataset_info if hub_id.is_dataset else HfApi().model_info
    info = ask(hub_id.id, revision=hub_id.revision, files_metadata=True, timeout=_SECONDS)
    if not info.sha or info.siblings is None:
        raise ValueError("its answer names no commit or no files")
    listing = {
        file.rfilename: HubFile(file.lfs.size if file.lfs else file.size, file.lfs.sha256 if file.lfs else file.blob_id)
        for file in info.siblings
    }
    path = _listing_path(hub_id.name, info.sha)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({file: asdict(entry) for file, entry in listing.items()})
    write_atomically(path, text, by_process=True)
    return info.sha, listing


def _type(hub_id: HubId) -> str:
    return "dataset" if hub_id.is_dataset else "model"


@contextmanager
def _one_sentence(hub_id: HubId) -> Iterator[None]:
    """Whatever the hub's library raises becomes a ModelError."""
    try:
        yield
    except Exception as error:
        raise ModelError(refusal(hub_id, error, _lack(hub_id, hub_id.revision)).text) from error


def _listing_path(name: str, commit: str) -> Path:
    return cache_dir() / "hub" / name.replace("/", "--") / f"{commit}.json"


def _kept_listing(hub_id: HubId) -> Listing | None:
    """The files of a hub id's commit, if the hub was asked before."""
    try:
        listed = json.loads(_listing_path(hub_id.name, str(hub_id.revision)).read_text(encoding="utf-8"))
        return {file: HubFile(entry["size"], entry["hash"]) for file, entry in listed.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _same_files(before: Listing | None, now: Listing, hub_id: HubId) -> bool:
    """Whether all files of two commits that affect results are equal: not a model's card, nor its pictures."""

    def counts(file: str) -> bool:
        return hub_id.is_dataset or Path(file).suffix in OF_A_MODEL

    def hashes(listing: Listing) -> dict[str, str | None]:
        return {file: entry.hash for file, entry in listing.items() if counts(file)}

    return before is not None and None not in hashes(now).values() and hashes(before) == hashes(now)


def _download(hub_id: HubId, files: list[str]) -> None:
    """Fetch files of a hub id's commit. The hub's library gives a file its name only when it is whole."""
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    name, commit = hub_id.id, str(hub_id.revision)
    if not sys.stderr.isatty():
        disable_progress_bars()
    with _one_sentence(hub_id):
        listing = _kept_listing(hub_id) or _ask(hub_id)[1]
    if problem := unfit(hub_id, listing):
        raise ModelError(problem)
    size = sum(listing[file].size or 0 for file in files if file in listing)
    say(f"{'fetching':<12} {name} at {commit[:7]}: {len(files)} files, {size / 1e6:,.1f} MB")
    cut_off = [file for file in files if (folder(hub_id) / file).is_file()]
    with _one_sentence(hub_id):
        snapshot_download(
            name, repo_type=_type(hub_id), revision=commit, allow_patterns=[glob.escape(file) for file in files]
        )
        for file in cut_off:
            hf_hub_download(name, file, repo_type=_type(hub_id), revision=commit, force_download=True)
    if missing := [file for file in files if file in lacking(hub_id)]:
        raise ModelError(
            f"{hub_id.key}: {name}: {missing[0]} of commit {commit[:7]} could not be fetched whole: try again"
        )

"""One sentence for each way in which a hub id cannot be had: the problem, and what to do.

The hub's errors are those of huggingface_hub.errors. A wrong name gets a guess: the hub's own search, the models in
the hub's local cache, and folders beside the campaign file.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from trueup.errors import did_you_mean, of_the_machine
from trueup.provenance.commits import HubId
from trueup.provenance.inputs import KINDS, kind_by_name


@dataclass(frozen=True)
class Refusal:
    """Why a hub id cannot be had."""

    key: str
    problem: str
    advice: str

    @property
    def text(self) -> str:
        return f"{self.key}: {self.problem}: {self.advice}"


def refusal(hub_id: HubId, error: Exception, lack: str) -> Refusal:
    """Why the hub did not give the model. An error of this machine, such as a full disk, is raised again.

    lack  what of the model is not on this machine, as a part of a sentence
    """
    if of_the_machine(error) is not None:
        raise error
    return _by_kind(hub_id, error, lack)


def _by_kind(hub_id: HubId, error: BaseException, lack: str) -> Refusal:
    from huggingface_hub import errors

    name, hub, key, what = hub_id.id, _hub(), f"{hub_id.key}: {hub_id.id}", hub_id.what
    match error:
        case errors.LocalEntryNotFoundError() if error.__cause__ is not None:
            return _by_kind(hub_id, error.__cause__, lack)
        case errors.OfflineModeIsEnabled():
            problem = " and ".join(["HF_HUB_OFFLINE is set", *([lack] if lack else [])])
            option = " --repo-type dataset" if hub_id.is_dataset else ""
            what = "model" if hub_id.is_adapter else what
            advice = f"unset it, or fetch the {what} where the hub can be reached (`hf download {name}{option}`)"
            return Refusal(key, problem, advice + _guess(hub_id, online=False))
        case errors.GatedRepoError():
            return _gated(key, hub_id.name)
        case errors.RevisionNotFoundError():
            problem = f"{name} has no branch, tag or commit {hub_id.revision!r}"
            hint = did_you_mean(hub_id.revision or "", _refs(hub_id))
            return Refusal(hub_id.revision_key, problem, f"name one that it has, or leave the key out{hint}")
        case errors.RepositoryNotFoundError():
            what = "model" if hub_id.is_adapter else what
            advice = f"correct the name, or log in with `hf auth login` if the {what} is yours{_guess(hub_id)}"
            return Refusal(key, f"{hub} has no such {what}, or it is private", advice)
        case errors.HFValidationError():
            problem = f"neither a path nor a hub id ({str(error).partition(':')[0]})"
            return Refusal(key, problem, "a hub id is `owner/name`, a path begins with / or ./")
        case errors.HfHubHTTPError():
            return _by_status(key, error, "data set" if hub_id.is_dataset else "model")
    problem = f"{hub} cannot be reached ({_first_line(error)})" + (f" and {lack}" if lack else "")
    advice = f"connect, or set {hub_id.key} to a local {'file or folder' if hub_id.is_dataset else 'folder'}"
    return Refusal(key, problem, advice + _guess(hub_id, online=False))


def _gated(key: str, name: str) -> Refusal:
    page = f"{_hub()}/{name}"
    if not _is_logged_in():
        advice = f"accept its conditions at {page}, and log in with `hf auth login` (or set HF_TOKEN)"
        return Refusal(key, "is gated, and nobody is logged in to the hub here", advice)
    advice = f"ask for access at {page}, or log in as somebody else with `hf auth login`"
    return Refusal(key, "is gated, and the account that is logged in has no access", advice)


def _by_status(key: str, error: Any, what: str) -> Refusal:
    status = error.response.status_code
    if status == 401:
        return Refusal(key, f"{_hub()} does not know the token in use", "log in again with `hf auth login`")
    if status == 403:
        advice = f"give it the right to read the {what} (a fine-grained token needs it by name), or `hf auth login`"
        return Refusal(key, "the token in use may not read it", advice)
    return Refusal(key, f"{_hub()} answers {status} {error.response.reason_phrase}".rstrip(), "try again later")


def unfit(hub_id: HubId, files: Iterable[str]) -> str | None:
    """Why a repository with these files cannot be a model here, or an adapter where one is wanted; None if it can."""
    names, where = set(files), f"{hub_id.key}: {hub_id.id}"
    if hub_id.is_dataset:
        is_there = any(kind_by_name(Path(name)) for name in names)
        return None if is_there else f"{where}: holds no file of rows ({', '.join(KINDS)}): name another"
    return _unfit_adapter(where, names) if hub_id.is_adapter else _unfit_model(hub_id, where, names)


def _unfit_adapter(where: str, names: set[str]) -> str | None:
    adapter_files = ("adapter_config.json", "adapter_model.safetensors")
    if names.issuperset(adapter_files):
        return None
    if "config.json" in names and not names.intersection(adapter_files):
        return f"{where}: holds a model and no adapter: name it as model.name, and leave model.adapter out"
    if "adapter_model.bin" in names:
        return (
            f"{where}: holds its weights as adapter_model.bin and not as safetensors; such a file can run code when it "
            "is read: if you trust its owner, convert it with PEFT (PeftModel, from_pretrained and then "
            "save_pretrained to a folder) and set model.adapter to that folder"
        )
    lacks = " and no ".join(name for name in adapter_files if name not in names)
    return f"{where}: holds no {lacks}, which PEFT's save_pretrained writes: name another"


def _unfit_model(hub_id: HubId, where: str, names: set[str]) -> str | None:
    ggufs = sorted(name for name in names if name.endswith(".gguf"))
    pickles = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth")) and "/" not in name)
    if {"model.safetensors", "model.safetensors.index.json"} & names and "config.json" in names:
        return None
    if "adapter_config.json" in names and "config.json" not in names:
        below = "name it as model.adapter, and " if hub_id.key == "model.name" else ""
        return f"{where}: holds an adapter and no model: {below}set {hub_id.key} to the model that it was trained on"
    if ggufs:
        return (
            f"{where}: holds GGUF files and no safetensors: fetch one (`hf download {hub_id.name} {ggufs[0]} "
            f"--local-dir .`) and set {hub_id.key} to ./{ggufs[0]}, or name the model that it was made from"
        )
    if pickles and "config.json" in names:
        return (
            f"{where}: holds its weights as {pickles[0]} and not as safetensors; such a file can run code when it is "
            "read: if you trust its owner, convert it with transformers (AutoModelForCausalLM and AutoTokenizer, "
            f"from_pretrained and then save_pretrained to a folder) and set {hub_id.key} to that folder"
        )
    lacks = " and no ".join(
        what
        for what, there in (("config.json", "config.json" in names), ("safetensors", "model.safetensors" in names))
        if not there
    )
    return f"{where}: holds no {lacks}: it is no model of transformers; name another"


# ---- Guesses ----------------------------------------------------------------------------------------------------


def _guess(hub_id: HubId, online: bool = True) -> str:
    """`; did you mean X?` if a model of like name is known, else nothing."""
    if hub_id.is_dataset:
        names = list(_on_hub(hub_id)) if online else []
    else:
        names = [*_beside(hub_id.beside), *_in_cache(), *(_on_hub(hub_id) if online else ())]
    by_end = {name.rpartition("/")[2].lower(): name for name in reversed(names)}
    whole = {name.lower(): name for name in reversed(names)}
    for choices, word in ((whole, hub_id.id), (by_end, hub_id.id.rpartition("/")[2])):
        close = difflib.get_close_matches(word.lower(), [name for name in choices if choices[name] != hub_id.id], n=1)
        if close:
            return f"; did you mean {choices[close[0]]}?"
    return ""


def _beside(folder: Path | None) -> Iterator[str]:
    """Folders with a model beside the campaign file, as one would write them there."""
    if folder is not None:
        for config in islice((path for pattern in ("*", "*/*") for path in folder.glob(f"{pattern}/config.json")), 500):
            yield f"./{config.parent.relative_to(folder)}"


def _in_cache() -> Iterator[str]:
    """Models in the hub's local cache."""
    from huggingface_hub import constants

    for folder in Path(constants.HF_HUB_CACHE).glob("models--*/snapshots"):
        yield folder.parent.name.removeprefix("models--").replace("--", "/", 1)


def _on_hub(hub_id: HubId) -> Iterator[str]:
    """Models, or data sets, of the hub that its search finds for the name, for its beginning, and by its owner."""
    from huggingface_hub import HfApi

    owner, _, end = hub_id.id.rpartition("/")
    search_hub = HfApi().list_datasets if hub_id.is_dataset else HfApi().list_models
    searches: list[Mapping[str, str]] = [{"search": end}, {"search": end.rpartition("-")[0]}, {"author": owner}]
    for search in searches:
        if all(search.values()):
            with suppress(Exception):  # a guess is worth no second error
                yield from (model.id for model in search_hub(**search, limit=50))  # type: ignore[arg-type]


def _refs(hub_id: HubId) -> list[str]:
    from huggingface_hub import HfApi

    with suppress(Exception):
        refs = HfApi().list_repo_refs(hub_id.id, repo_type="dataset" if hub_id.is_dataset else "model")
        return [ref.name for ref in (*refs.branches, *refs.tags)]
    return []


def _hub() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def _is_logged_in() -> bool:
    from huggingface_hub import get_token

    return get_token() is not None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

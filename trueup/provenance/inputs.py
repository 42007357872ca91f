"""Inputs: the files with rows that a path stands for, and their hashes. No torch.

A path is a file, a folder (all files of rows in it, also a `datasets` directory as save_to_disk leaves it), a
pattern such as `data/*.jsonl`, a hub data set: `hf:/owner/name@COMMIT?split=train`, or a web address: `https:/...`.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from trueup.errors import DataError
from trueup.files import replacing
from trueup.provenance.commits import DATASETS, HubId, repository
from trueup.provenance.contents import Contents, cache_dir, changed, sha256_remembered
from trueup.provenance.masking import masked
from trueup.provenance.seals import SEALS
from trueup.provenance.splits import files_of_split

KINDS = {
    ".jsonl": "lines",
    ".ndjson": "lines",
    ".json": "list",
    ".csv": "table",
    ".tsv": "table",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
"""What a file of rows holds, by the ending of its name."""
PACKED = (".gz", ".zst", ".zstd", ".bz2", ".xz")
"""Endings of packed files, behind the one that says what they hold."""
_OF_DATASETS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""What `datasets` notes beside its rows."""


CARD = "README.md"


# ---- Hub data sets ----------------------------------------------------------------------------------------------

_ID = re.compile(r"(?:hf:/(?:/datasets/)?)?([\w][\w.-]*/[\w.-]+)(?:@([^?]+))?(?:\?(.*))?")
_PARTS = ("subset", "split")


def elsewhere(value: str, base: Path) -> Path | None:
    """The path that stands for a web address or a hub data set, `owner/name@REVISION?subset=...&split=...`, if that is
    what a campaign file names; a ValueError for another part than these.

    base  the folder in which a file or folder of this name would be meant
    """
    if scheme := re.match("https?:/+", value, re.IGNORECASE):
        if _holds_secret(value):
            raise ValueError(
                f"{masked(value)}: holds a secret, which every manifest would keep; fetch the file, and name it here"
            )
        return Path(scheme[0].lower() + value[scheme.end() :])
    match = _ID.fullmatch(value)
    is_path = kind_by_name(Path(value)) or os.path.exists(base / value)
    if match is None or (is_path and not value.startswith("hf:")):
        return None
    if other := sorted(dict(parse_qsl(match[3] or "")).keys() - set(_PARTS)):
        raise ValueError(f"{value}: {other[0]!r} is no part of a hub data set; write {' or '.join(_PARTS)}")
    return Path(f"hf:/{value.removeprefix('hf://datasets/')}")


def _holds_secret(address: str) -> bool:
    """Whether a web address names a user, or has a parameter whose whole name is a secret's."""
    parts = urlsplit(address)
    parameters = dict(parse_qsl(parts.query))
    return "@" in parts.netloc or any(masked({name: "x"}) != {name: "x"} for name in parameters)


def hub_id_of(path: Path, key: str = "path") -> HubId | None:
    """The hub data set that a path stands for; None if it is a path on this machine."""
    match = _ID.fullmatch(str(path)) if path.parts[:1] == ("hf:",) else None
    if match is None:
        return None
    part = dict(parse_qsl(match[3] or ""))
    return HubId(f"{DATASETS}{match[1]}", match[2], key, subset=part.get("subset"), split=part.get("split"))


def hub_ids_of(paths: Mapping[str, Path | None]) -> list[HubId]:
    """The hub data sets among paths, by the keys that name them."""
    return [hub_id for key, path in paths.items() if path and (hub_id := hub_id_of(path, key))]


def _of_hub(path: Path, hub_id: HubId) -> list[Path]:
    """The files of a hub data set, which lie in the hub's local cache."""
    from huggingface_hub.constants import HF_HUB_CACHE

    place = repository(Path(HF_HUB_CACHE), hub_id.name) / "snapshots" / str(hub_id.revision)
    try:
        names = chosen_files(hub_id, place, files_under(place))
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    if not names:
        raise DataError(f"{path}: is not on this machine; `trueup run CONFIG` and `trueup check CONFIG` fetch it")
    return [place / name for name in names]


def files_under(folder: Path) -> list[str]:
    """The names of all files under a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def chosen_files(hub_id: HubId, folder: Path, names: Iterable[str]) -> list[str]:
    """The files with the rows that are wanted of a data set whose card lies in a folder, if it is there."""
    card = folder / CARD
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    rows = [name for name in names if kind_by_name(Path(name)) and Path(name).name not in _OF_DATASETS]
    return files_of_split(rows, text, hub_id.subset, hub_id.split) if rows else []


# ---- Web addresses ----------------------------------------------------------------------------------------------


def _address_of(path: Path) -> str | None:
    """The web address that a path stands for; a path has no two slashes in a row, which begin the address."""
    return str(path).replace(":/", "://", 1) if path.parts[:1] in (("http:",), ("https:",)) else None


def _copy_of(address: str) -> Path:
    """Where the file at an address lies once it is fetched."""
    name = Path(urlsplit(address).path).name or "rows"
    return cache_dir() / "fetched" / f"{hashlib.sha256(address.encode()).hexdigest()[:16]}-{name[-100:]}"


def _fetched(address: str) -> Path:
    """The file at an address, in Trueup's own cache. It is fetched once: a stage that was run stays as it is."""
    import httpx

    place = _copy_of(address)
    if place.is_file():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        with (
            replacing(place, by_process=True) as partial,
            httpx.stream("GET", address, follow_redirects=True, timeout=60) as reply,
            partial.open("wb") as file,
        ):
            reply.raise_for_status()
            for part in reply.iter_bytes():
                file.write(part)
    except httpx.HTTPStatusError as error:
        raise DataError(f"{address}: the server answers {error.response.status_code}: correct the address") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise DataError(f"{address}: cannot be fetched ({str(error) or type(error).__name__}): try again") from None
    return place


# ---- Files ------------------------------------------------------------------------------------------------------


def kind_by_name(path: Path) -> str | None:
    """What a file holds by the ending of its name; None if the name does not say."""
    return KINDS.get(plain_ending(path))


def plain_ending(path: Path) -> str:
    """The ending of a file's name in lower case, without that of a packing."""
    name = path.name.lower()
    for ending in PACKED:
        name = name.removesuffix(ending)
    return os.path.splitext(name)[1]


def files_of(path: Path) -> list[Path]:
    """The files with rows that a path stands for, in the order of their names; a DataError if there are none."""
    if hub_id := hub_id_of(path):
        return _of_hub(path, hub_id)
    if address := _address_of(path):
        return [_fetched(address)]
    if os.path.isdir(path):
        return _in_folder(path)
    if not os.path.exists(path) and glob.has_magic(str(path)):
        there = next(one for one in path.parents if os.path.isdir(one))  # a folder's name may have brackets
        names = sorted(glob.glob(str(path.relative_to(there)), root_dir=there, recursive=True))
        files = [there / name for name in names if os.path.isfile(there / name)]
        if not files:
            raise DataError(f"{path}: no file fits this pattern")
        return files
    if not os.path.isfile(path):  # false too for a name that is too long
        raise DataError(f"{path}: {'is no file; a file is wanted' if os.path.exists(path) else 'no such file'}")
    return [path]


def companion_of(file: Path) -> Path | None:
    """The file `annotations/NAME` in a folder above a file, from which its rows take their instruction
    (`trueup.data.formats.demonstrations`, instruction_induction); None if there is none."""
    if plain_ending(file) != ".json":
        return None
    name = Path("annotations", file.name)
    return next((parent / name for parent in file.absolute().parents if (parent / name).is_file()), None)


def not_read(path: Path) -> list[str]:
    """The files of a folder that hold no rows, as their names say; none of a `datasets` directory, of what is hidden
    and of what a run wrote."""
    if hub_id_of(path) or not os.path.isdir(path) or (path / "state.json").is_file():
        return []
    inside = [one for one in _visible(path) if one.name not in (CARD, *_OF_DATASETS) and one.is_file()]
    return [str(one.relative_to(path)) for one in inside if not kind_by_name(one)]


def absolute(path: Path) -> Path:
    """A path as one finds it from any directory."""
    return path if hub_id_of(path) or _address_of(path) else path.absolute()


def is_there(path: Path) -> bool:
    """Whether a path stands for any file with rows."""
    try:
        return bool(files_of(path))
    except DataError:
        return False


def _in_folder(folder: Path) -> list[Path]:
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(path.parent.name for path in folder.glob("*/state.json"))
        if not splits:
            raise DataError(f"{folder}: has a dataset_dict.json, and no split that it names; save or copy it again")
        raise DataError(f"{folder}: holds the splits {', '.join(splits)}; name one of them: {folder / splits[0]}")
    if (folder / "state.json").is_file() and (files := _of_state(folder)):
        return files
    inside = _visible(folder)
    files = [path for path in inside if kind_by_name(path) and path.name not in _OF_DATASETS and path.is_file()]
    if not files:
        names = ", ".join(str(path.relative_to(folder)) for path in inside[:5]) or "nothing"
        raise DataError(f"{folder}: this folder has no file of rows ({', '.join(KINDS)}); it holds {names}")
    return files


def _visible(folder: Path) -> list[Path]:
    """All that is in a folder but hidden files, and what a run wrote, which is no input of it."""
    of_runs = {path.parent for path in folder.rglob(SEALS)}
    return [
        path
        for path in sorted(folder.rglob("*"))
        if not _is_hidden(path.relative_to(folder)) and of_runs.isdisjoint(path.parents)
    ]


def _of_state(folder: Path) -> list[Path]:
    """The files that make up a `datasets` directory, in their order."""
    try:
        entries = json.loads((folder / "state.json").read_text(encoding="utf-8"))["_data_files"]
        return [folder / entry["filename"] for entry in entries]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _is_hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)


# ---- Hashes -----------------------------------------------------------------------------------------------------


def contents_of(path: Path) -> Contents:
    """The hash of each file that a path stands for, and of each companion: {its name within the folder: SHA-256}."""
    if hub_id := hub_id_of(path):
        return {"commit": hub_id.revision or "unknown"}
    files = files_of(path)
    if _address_of(path):
        return {path.name: sha256_remembered(files[0])}
    top = path if os.path.isdir(path) else next(one for one in path.parents if os.path.isdir(one))
    read = dict.fromkeys([*files, *filter(None, map(companion_of, files))])
    return {os.path.relpath(file, top): sha256_remembered(file) for file in read}


def recorded(path: Path) -> Contents | None:
    """The contents that a manifest records of an input; None of a file that stands alone, whose hash says all."""
    contents = contents_of(path)
    return None if path.is_file() and len(contents) == 1 else contents


def sha256_of(path: Path, files: Contents | None = None) -> str:
    """The hash of an input: of a file that stands alone its own, else that of the names and hashes of all its files."""
    files = files or contents_of(path)
    if os.path.isfile(path) and len(files) == 1:
        return files[path.name]
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def why_changed(path: Path, sha256: str, files: Mapping[str, str] | None) -> str | None:
    """The sentence that an input is another one than was recorded; None if it is the same. Nothing is fetched: the run
    may be somebody else's, and name any address."""
    if (address := _address_of(path)) and not _copy_of(address).is_file():
        return f"{address} is missing: it is no longer in {cache_dir()}"
    try:
        now = contents_of(path)
    except DataError:
        return f"{path} is missing"
    if sha256_of(path, now) == sha256:
        return None
    return "; ".join(changed({str(path): dict(files)}, {str(path): now})) if files else f"{path} has changed"

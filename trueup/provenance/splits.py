"""The files of a hub data set that hold one split of one subset, by its card or else by their names."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

import yaml

from trueup.errors import DataError

_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval"), "test"),
}
"""Words in the name of a file or of its folder that say which split it holds."""
Splits = dict[str, list[str]]
"""{split: its files}."""


def files_of_split(names: Iterable[str], card: str, subset: str | None, split: str | None) -> list[str]:
    """The files with the rows of a split, in order; a DataError says which subsets and splits there are.

    names  of the files with rows
    card   the text of README.md
    """
    subsets = _subsets(sorted(names), card)
    if subset is None:
        subset = next(iter(subsets)) if len(subsets) == 1 else "default"
    if subset not in subsets:
        raise DataError(
            f"{'has no subset ' + repr(subset) if subset != 'default' else 'has several subsets'}; it has "
            f"{_listed(subsets)}: name one of them, as in ?subset={next(iter(subsets))}"
        )
    splits = {name: files for name, files in subsets[subset].items() if files}
    if split is None and len(splits) == 1:
        split = next(iter(splits))
    if split not in splits:
        problem = f"has no split {split!r}" if split else "has several splits"
        which = f"name one of them, as in ?split={next(iter(splits), 'train')}"
        raise DataError(f"{problem}; it has {_listed(splits)}: {which}")
    return splits[split]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(list(names)[:30]) or "none"


def _subsets(names: list[str], card: str) -> dict[str, Splits]:
    configs = _configs(card)
    if not configs:
        return {"default": _by_name(names)}
    subsets = {}
    for config in configs:
        title = str(config.get("config_name", "default"))
        subsets["default" if config.get("default") is True else title] = _by_card(names, config)
        subsets.setdefault(title, _by_card(names, config))
    return subsets


def _configs(card: str) -> list[Mapping[str, Any]]:
    """The subsets that the card's head declares, with their files."""
    head = re.match(r"---\s*\n(.*?)\n---", card, re.DOTALL)
    try:
        values = yaml.safe_load(head[1]) if head else None
    except yaml.YAMLError:
        return []
    configs = values.get("configs") if isinstance(values, dict) else None
    known = [one for one in configs if isinstance(one, dict)] if isinstance(configs, list) else []
    return [one for one in known if one.get("data_files") or one.get("data_dir")]


def _by_card(names: list[str], config: Mapping[str, Any]) -> Splits:
    folder = str(config.get("data_dir") or "").strip("./")
    here = [name for name in names if not folder or name.startswith(f"{folder}/")]
    entries = config.get("data_files")
    if not entries:
        return _by_name(here)
    entries = entries if isinstance(entries, list) else [entries]
    splits: Splits = {}
    for entry in entries:
        split, paths = (entry.get("split"), entry.get("path")) if isinstance(entry, dict) else ("train", entry)
        for pattern in paths if isinstance(paths, list) else [paths]:
            wanted = str(PurePosixPath(folder, str(pattern)))
            matching = [name for name in here if fnmatch.fnmatchcase(name, wanted)]
            splits.setdefault(str(split), []).extend(name for name in matching if name not in splits[str(split)])
    return splits


def _by_name(names: list[str]) -> Splits:
    """By a word in the file's name, or in that of a folder; without any such word all files are one split."""
    splits: Splits = {}
    for name in names:
        words = [word for part in reversed(PurePosixPath(name).parts) for word in re.split("[^a-z]+", part.lower())]
        split = next((_WORDS[word] for word in words if word in _WORDS), None)
        splits.setdefault(split or PurePosixPath(name).name.split(".")[0], []).append(name)
    return splits if splits.keys() & set(_WORDS.values()) else {"train": names}

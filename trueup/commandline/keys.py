"""The keys of a campaign file: the name of each, its values, its default and its meaning.

All of it comes from the sections of the stages, so that `trueup keys`, docs/config.md and the schema for editors
(docs/generate.py) agree with the code. No stage is imported, only its config, so this needs no torch.
"""

from __future__ import annotations

import types
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from trueup.campaign import AT_THE_TOP, CampaignConfig
from trueup.config import Section, section_in
from trueup.errors import TrueupError, did_you_mean
from trueup.stages import STAGES, load_object

_SHARED = {*CampaignConfig.model_fields} - {"name"}
"""Keys of the campaign that its stages take over."""


@dataclass(frozen=True)
class Key:
    name: str
    type: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Table:
    """The keys of one section, `sft.lora` for example; the name of the top of the file is empty."""

    name: str
    does: str
    keys: tuple[Key, ...]


def tables() -> dict[str, Table]:
    """Every section of a campaign file, by its name. If a stage is a choice of algorithms, its own table has the keys
    that all of them share, and each algorithm's table has all of that algorithm's keys."""
    result = _with_inner("", CampaignConfig)
    for stage, entry in STAGES.items():
        schema = load_object(entry.config)
        if not isinstance(schema, dict):
            result |= _with_inner(stage, schema)
            continue
        algorithms: dict[str, Table] = {}
        within: dict[str, Table] = {}
        for name, one in schema.items():
            own, *inner = _with_inner(f"{stage}.{name}", one).values()
            algorithms[own.name] = own
            within |= {table.name: table for table in (_beside(stage, name, table) for table in inner)}
        result |= {stage: _of_all(stage, list(algorithms.values())), **algorithms, **within}
    return result


def _with_inner(name: str, schema: type[BaseModel]) -> dict[str, Table]:
    """A section, followed by the sections within it."""
    fields = {key: field for key, field in schema.model_fields.items() if not (name and key in AT_THE_TOP)}
    keys = tuple(_key(key, field, of_stage=name in STAGES or "." in name) for key, field in fields.items())
    result = {name: Table(name, _first_sentences(schema.__doc__ or ""), keys)}
    for key, field in fields.items():
        if inner := section_in(field.annotation):
            result |= _with_inner(f"{name}.{key}" if name else key, inner)
    return result


def _beside(stage: str, algorithm: str, table: Table) -> Table:
    """A section within an algorithm's, under its shorter name: `align.lora` stands for every algorithm that has it."""
    return replace(table, name=table.name.replace(f"{stage}.{algorithm}.", f"{stage}."))


def _of_all(stage: str, algorithms: list[Table]) -> Table:
    """The keys that mean the same in every algorithm of a stage, and the key that chooses the algorithm."""
    first, *others = algorithms
    names = [table.name.rpartition(".")[2] for table in algorithms]
    chooses = next(key for key in first.keys if key.name == "algorithm")
    chooses = Key(chooses.name, _either([f"`{name}`" for name in names]), names[0], chooses.meaning)
    shared = [key for key in first.keys if all(key in other.keys for other in others)]
    does = f"{STAGES[stage].does[0].upper()}{STAGES[stage].does[1:]}. The keys of every algorithm."
    return Table(stage, does, (chooses, *shared))


def find(name: str) -> Table:
    """The table of a section, or of a single key (`sft.learning_rate`)."""
    every = tables()
    if name in every:
        return every[name]
    section, _, key = name.rpartition(".")
    keys = every[section].keys if section in every else ()
    if one := [entry for entry in keys if entry.name == key]:
        return Table(section, every[section].does, tuple(one))
    if section and keys:
        names = [*(entry.name for entry in keys), *(inner.rpartition(".")[2] for inner in within(section))]
        raise TrueupError(f"{name}: {section} has no such key{did_you_mean(key, names)}")
    sections = [*filter(None, every), *(entry.name for entry in every[""].keys)]
    raise TrueupError(f"{name}: no such section or key{did_you_mean(name, sections)}")


def within(name: str) -> list[str]:
    """The names of the sections within a section."""
    return [table for table in tables() if table and (not name or table.startswith(f"{name}."))]


# ---- Words ------------------------------------------------------------------------------------------------------


def _first_sentences(text: str) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join(text.split("\n\n")[0].split())


def _key(name: str, field: FieldInfo, of_stage: bool) -> Key:
    default = "that of the campaign" if of_stage and name in _SHARED else _default(field)
    return Key(name, _type(field.annotation, field.metadata), default, " ".join((field.description or "").split()))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, Section):
        return "its keys' defaults"
    if value is None:
        return "empty"
    return value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True).splitlines()[0]


_PLAIN = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "text",
    Path: "path",
    date: "YYYY-MM-DD",
    Any: "anything",
}
_BOUNDS = {
    "gt": "above {}",
    "ge": "at least {}",
    "lt": "below {}",
    "le": "at most {}",
    "min_length": "{} or more entries",
    "max_length": "at most {} of them",
}


def _type(annotation: Any, metadata: list[Any] | tuple[Any, ...] = ()) -> str:
    """The values that a field takes, in words."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(parts[0], [*parts[1:], *metadata])
    bounds = [
        words.format(int(bound) if bound == int(bound) else bound)
        for name, words in _BOUNDS.items()
        for bound in _bounds(metadata, name)
    ]
    optional = origin in (Union, types.UnionType) and type(None) in parts
    return _bare_type(annotation) + "".join(f", {words}" for words in bounds) + (", or empty" if optional else "")


def _bounds(metadata: list[Any] | tuple[Any, ...], name: str) -> list[float]:
    constraints = [
        inner for entry in metadata for inner in (entry.metadata if isinstance(entry, FieldInfo) else [entry])
    ]
    return [bound for entry in constraints if (bound := getattr(entry, name, None)) is not None]


def _bare_type(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return _either([_type(part) for part in parts if part is not type(None)])
    if origin is Literal:
        return _either([f"`{part}`" for part in parts])
    if origin is list:
        return "list of sections" if section_in(annotation) else f"list: {_type(parts[0])}"
    if origin is dict:
        return f"mapping of names to: {_type(parts[1])}"
    return "section" if section_in(annotation) else _PLAIN[annotation]


def _either(words: list[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))

"""The documents that are made from the code: docs/config.md, docs/cli.md and docs/campaign.schema.json.

`make docs` (or `python docs/generate.py`) writes them; a test fails when one of them is not what the code says.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any
from unittest import mock

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from trueup.artifacts.manifest import Manifest
from trueup.campaign import AT_THE_TOP, CampaignConfig
from trueup.cli import make_parser
from trueup.commandline.keys import Key, Table, tables
from trueup.stages import STAGES, load_object

FOLDER = Path(__file__).parent
_MADE = "made from the code by `make docs`; change the code, not this file"


def documents() -> dict[str, str]:
    """The text of every document, by its name in docs/."""
    schema = json.dumps(campaign_schema(), indent=1, ensure_ascii=False) + "\n"
    reports = {f"schemas/{name}.json": report_schema(name) for name in ("manifest", *STAGES)}
    return {"config.md": _config_page(), "cli.md": _cli_page(), "campaign.schema.json": schema, **reports}


# ---- Keys -------------------------------------------------------------------------------------------------------

_CONFIG_INTRO = f"""\
# The keys of a campaign file

<!-- {_MADE} -->
A campaign is one YAML file. The keys of the first table stand at its top; every stage has a section of its own name.
`--set sft.learning_rate=1e-4` overrides a key for one command. An unknown key is an error with a suggestion.
In a terminal, `trueup keys sft` prints the same tables.

An editor with a YAML language server completes and checks keys if the file begins with a line like this one, as those
in `configs/` do. The path starts from the folder of the file.

```
# yaml-language-server: $schema=../docs/campaign.schema.json
```
"""


def _config_page() -> str:
    known = tables()
    seen: dict[tuple[Key, ...], list[str]] = {}
    for table in known.values():
        seen.setdefault(table.keys, []).append(table.name)
    parts = [_CONFIG_INTRO]
    for keys, names in seen.items():
        parts.append(_section(known, known[names[0]], keys, names))
    return "\n".join(parts)


def _section(known: dict[str, Table], table: Table, keys: tuple[Key, ...], names: list[str]) -> str:
    """One table. What an algorithm shares with all others of its stage stands in the stage's table alone."""
    stage = table.name.partition(".")[0]
    does = table.does
    if table.name.partition(".")[2] in _algorithms(stage):
        shared = known[stage].keys
        keys = tuple(key for key in keys if key not in shared and key.name != "algorithm")
        does += f"\n\nThese keys come beside [those of every algorithm](#{stage})."
    title = ", ".join(f"`{name}`" for name in names) if table.name else "The top of the file"
    rows = [f"| `{key.name}` | {_cell(key.type)} | {_default(key)} | {_cell(key.meaning)} |" for key in keys]
    return "\n".join(
        [f"## {title}", "", does, "", "| key | type | default | meaning |", "|---|---|---|---|", *rows, ""]
    )


def _algorithms(stage: str) -> list[str]:
    schema = load_object(STAGES[stage].config) if stage in STAGES else None
    return list(schema) if isinstance(schema, dict) else []


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _default(key: Key) -> str:
    in_words = key.default in ("required", "empty", "its keys' defaults", "that of the campaign")
    return key.default if in_words else f"`{_cell(key.default)}`"


# ---- Commands ---------------------------------------------------------------------------------------------------


def _cli_page() -> str:
    # argparse folds lines at the width of the terminal, which is nobody's here.
    with mock.patch.dict(os.environ, {"COLUMNS": "110", "NO_COLOR": "1"}):
        commands = [f"## `{parser.prog}`\n\n```\n{parser.format_help()}```\n" for parser in _parsers(make_parser())]
    return "\n".join([f"# The commands\n\n<!-- {_MADE} -->\nThis is the `--help` of every command.\n", *commands])


def _parsers(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """A parser and those of its subcommands."""
    inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [parser, *(one for action in inner for choice in action.choices.values() for one in _parsers(choice))]


# ---- Schema for editors -----------------------------------------------------------------------------------------


class _Untitled(GenerateJsonSchema):
    """Keys without the titles that pydantic makes of their names."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def campaign_schema() -> dict[str, Any]:
    """The JSON schema of a campaign file."""
    schemas = {stage: load_object(entry.config) for stage, entry in STAGES.items()}
    of_stages = [
        one for schema in schemas.values() for one in (schema.values() if isinstance(schema, dict) else [schema])
    ]
    models = [(model, "validation") for model in (CampaignConfig, *of_stages)]
    definitions = models_json_schema(models, schema_generator=_Untitled)[1]["$defs"]  # type: ignore[arg-type]
    for model in of_stages:
        _take_out(definitions[model.__name__], AT_THE_TOP)
    campaign = definitions.pop(CampaignConfig.__name__)
    for stage, schema in schemas.items():
        if isinstance(schema, dict):
            definitions[stage] = _choice(schema, definitions)
        reference = {"$ref": f"#/$defs/{stage if isinstance(schema, dict) else schema.__name__}"}
        left_out = STAGES[stage].none is not None
        required = not isinstance(schema, dict) and bool(definitions[schema.__name__].get("required")) and not left_out
        campaign["required"] += [stage] if required else []
        nothing = [{"type": "null"}, *([{"const": "none"}] if left_out else [])]
        either = {"$ref": reference["$ref"]} if required else {"anyOf": [reference, *nothing]}
        campaign["properties"][stage] = {**either, "description": STAGES[stage].does}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **campaign, "$defs": definitions}


def _take_out(definition: dict[str, Any], keys: tuple[str, ...]) -> None:
    for key in keys:
        definition["properties"].pop(key, None)
    definition["required"] = [key for key in definition.get("required", []) if key not in keys]


def _choice(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """A section whose keys are those of the algorithm that it names, beside a section for each algorithm."""
    within = {name: {"anyOf": [{"$ref": f"#/$defs/{one.__name__}"}, {"type": "null"}]} for name, one in schema.items()}
    cases = []
    for name, one in schema.items():
        keys = definitions[one.__name__]
        is_chosen: dict[str, Any] = {"properties": {"algorithm": {"const": name}}}
        if name != next(iter(schema)):  # the first is the default, chosen where nothing is said
            is_chosen["required"] = ["algorithm"]
        cases.append({"if": is_chosen, "then": {**keys, "properties": {**keys["properties"], **within}}})
    return {"type": "object", "properties": {"algorithm": {"enum": list(schema)}}, "allOf": cases}


# ---- What stages leave ------------------------------------------------------------------------------------------


def report_schema(name: str) -> str:
    """The JSON schema of the manifest, or of the report.json of a stage."""
    if name == "manifest":
        return _schema_text(Manifest, "manifest.json")
    config = load_object(STAGES[name].config)
    if isinstance(config, dict):  # a choice by algorithm, which has one schema for all
        config = next(iter(config.values()))
    report = load_object(config.report)
    if (none := STAGES[name].none) is not None:
        report |= load_object(load_object(none).report)
    return _schema_text(report, f"report.json of the stage {name}")


def _schema_text(schema: Any, title: str) -> str:
    made = TypeAdapter(schema).json_schema(mode="serialization")
    return json.dumps({**made, "title": title}, indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    for name, text in documents().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
        print(FOLDER / name)


if __name__ == "__main__":
    main()

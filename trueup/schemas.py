"""JSON schemas of what stages leave, under docs/schemas: `python -m trueup.schemas [FOLDER]`.

They are for whoever reads a run by a program of their own. A test fails when a file there is not what this writes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from trueup.manifest import Manifest
from trueup.stages import STAGES, load_object

FOLDER = Path(__file__).parents[1] / "docs" / "schemas"
NAMES = ("manifest", *STAGES)
"""The manifest's schema, and that of every stage's report.json."""


def schema_text(name: str) -> str:
    """The JSON schema of one file, as it stands under docs/schemas."""
    if name == "manifest":
        return _text(Manifest, "manifest.json")
    config = load_object(STAGES[name].config)
    if isinstance(config, dict):  # a choice by algorithm, which has one schema for all
        config = next(iter(config.values()))
    return _text(load_object(config.report), f"report.json of the stage {name}")


def _text(schema: Any, title: str) -> str:
    made = TypeAdapter(schema).json_schema(mode="serialization")
    return json.dumps({**made, "title": title}, indent=2, ensure_ascii=False) + "\n"


def main(folder: Path = FOLDER) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        (folder / f"{name}.json").write_text(schema_text(name), encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

"""The JSON schemas under docs: up to date, and what they say of every key."""

from __future__ import annotations

import json

import pytest

from trueup.schemas import FOLDER, NAMES, schema_text


@pytest.mark.parametrize("name", NAMES)
def test_a_schema_under_docs_is_what_the_code_writes_and_reads(name: str) -> None:
    text = (FOLDER / f"{name}.json").read_text(encoding="utf-8")
    assert text == schema_text(name), "stale: run `python -m trueup.schemas`"
    schema = json.loads(text)
    for part in (schema, *schema.get("$defs", {}).values()):
        if "properties" in part:
            assert part.get("description"), "every part says what it is"
            if part["title"] != "Finding":  # a dataclass
                assert part["additionalProperties"] is False, "a key that no schema names is an error"


def test_every_stage_has_a_schema_and_no_schema_is_left_of_another() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(NAMES)

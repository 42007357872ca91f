"""docs/config.md, docs/cli.md, the schema for editors and `trueup keys` say what a campaign file accepts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

import generate
from trueup.campaign import resolve
from trueup.cli import main
from trueup.commandline.keys import find, tables
from trueup.config import read_yaml, set_key
from trueup.errors import ConfigError
from trueup.stages import STAGES

REPOSITORY = Path(__file__).parents[2]
CAMPAIGNS = sorted((REPOSITORY / "configs").rglob("*.yaml"))
SCHEMA = generate.campaign_schema()
KEYS = [(table.name, key) for table in tables().values() for key in table.keys]


@pytest.mark.parametrize("name", generate.documents())
def test_a_document_that_is_made_from_the_code_is_up_to_date(name: str) -> None:
    on_disk = (REPOSITORY / "docs" / name).read_text(encoding="utf-8")
    assert on_disk == generate.documents()[name], "run `make docs`"


# ---- Keys -------------------------------------------------------------------------------------------------------


def test_every_key_has_a_meaning_that_first_says_what_it_is() -> None:
    assert [f"{section}.{key.name}" for section, key in KEYS if not key.meaning] == [], "a docstring below the field"
    starts = re.compile(r"(?!Of )[A-Z`].*[.?]")
    assert [f"{section}.{key.name}" for section, key in KEYS if not starts.fullmatch(key.meaning)] == []


def test_a_key_is_told_with_the_values_that_it_takes_and_its_default() -> None:
    told = {key.name: (key.type, key.default) for key in (*find("sft").keys, *find("align").keys)}
    assert told["learning_rate"] == ("number, above 0", "0.0002")
    assert told["data"] == ("list of sections, 1 or more entries", "required")
    assert told["algorithm"] == ("`dpo`, `simpo`, `kto`, `best_of_n`, `ppo`, `grpo` or `rloo`", "dpo")
    assert told["seed"][1] == "that of the campaign"
    assert find("align.ppo.kl_target").keys[0].type == "number, above 0, or empty"


def test_a_stage_does_not_list_the_keys_that_stand_at_the_top_of_the_file() -> None:
    assert {"name", "run_dir", "model", "split"} <= {key.name for key in tables()[""].keys}
    listed = {key.name for section, key in KEYS if section.split(".")[0] in STAGES and section.count(".") == 0}
    assert not {"run_dir", "model", "split"} & listed


@pytest.mark.parametrize("name", ["", "model", "sft.lora", "align", "align.ppo", "align.lora", "compare.checks"])
def test_a_section_is_printed_in_the_terminal(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", *([name] if name else [])]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in printed if "; " in line and line[0] != " "] == [
        key.name for key in find(name).keys
    ]


def test_one_key_is_printed_alone_and_an_unknown_one_is_told_its_neighbour(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "align.ppo.gamma"]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "gamma: number, above 0, at most 1; default 1.0",
        "    Discount of later rewards, per token. 1: none.",
    ]
    for wrong, said in {
        "algn": "algn: no such section or key; did you mean align?",
        "align.pppo": "align.pppo: align has no such key; did you mean ppo?",
        "sft.learn_rate": "sft.learn_rate: sft has no such key; did you mean learning_rate?",
        "sft.lora.rank": "sft.lora.rank: sft.lora has no such key",
    }.items():
        assert main(["keys", wrong]) == 2
        assert capsys.readouterr().err.startswith(said)


# ---- Schema for editors -----------------------------------------------------------------------------------------


def complaints(values: dict[str, Any]) -> list[str]:
    return [error.message for error in Draft202012Validator(SCHEMA).iter_errors(values)]


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("path", CAMPAIGNS, ids=lambda path: path.name)
def test_a_campaign_that_ships_fits_the_schema_that_its_first_line_names(path: Path) -> None:
    named = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# yaml-language-server: $schema=")
    assert json.loads((path.parent / named).read_text(encoding="utf-8")) == SCHEMA
    assert complaints(yaml.safe_load(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "assignment",
    [
        "nam=x",
        "run_dir=7",
        "seed=-1",
        "split.heldout_fraction=1",
        "sft.data=[]",
        "sft.data=[{pth: x}]",
        "sft.run_dir=x",
        "sft.model={name: embedded}",
        "sft.lora.r=0",
        "sample.prompts=7",
        "sample=7",
        "label.source=nobody",
        "align.algorithm=pppo",
        "align.kl_coef=0.1",
        "align.dpo.kl_coef=0.1",
        "align.ppo.kl_coef=-1",
        "compare.judges=[nobody]",
        "compare.checks=[{kind: ifeval}]",
    ],
)
def test_the_schema_refuses_what_a_campaign_file_refuses(assignment: str) -> None:
    path = REPOSITORY / "configs" / "demo.yaml"
    values = read_yaml(path)
    set_key(values, assignment)
    with pytest.raises(ConfigError):
        resolve(path, values)
    assert complaints(values)


@pytest.mark.parametrize(
    "assignment",
    [
        "align.algorithm=ppo",
        "align={algorithm: ppo, kl_coef: 0.1, dpo: {beta: auto}}",
        "align={beta: 0.2, ppo: null}",
        "align=null",
        "sft.data=[starter, {path: starter, max_rows: 3}]",
        "label={source: judge, judge_url: 'http://127.0.0.1:1', judge_model: x, judge_parameters: {temperature: null}}",
        "sft.seed=7",
        "compare.others={ppo: runs/demo-ppo}",
    ],
)
def test_the_schema_accepts_what_a_campaign_file_accepts(assignment: str) -> None:
    path = REPOSITORY / "configs" / "demo.yaml"
    values = read_yaml(path)
    set_key(values, assignment)
    resolve(path, values)
    assert complaints(values) == []


# ---- Schemas of what stages leave -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["manifest", *STAGES])
def test_the_schema_of_a_report_says_what_every_part_is_and_takes_no_other_key(name: str) -> None:
    schema = json.loads(generate.report_schema(name))
    for part in (schema, *schema.get("$defs", {}).values()):
        if "properties" in part:
            assert part.get("description"), "every part says what it is"
            if part["title"] != "Finding":  # a dataclass
                assert part["additionalProperties"] is False, "a key that no schema names is an error"


def test_no_schema_is_left_of_a_stage_that_is_gone() -> None:
    assert {path.stem for path in (REPOSITORY / "docs" / "schemas").iterdir()} == {"manifest", *STAGES}

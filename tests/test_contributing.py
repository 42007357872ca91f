"""What CONTRIBUTING.md shows works as it stands: each walk-through is done here, in the module that it names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest
import yaml
from trl import DPOConfig as TRLConfig

import rlhf.align.config.labelled
from rlhf.align import guards
from rlhf.align.config.labelled import LOSSES, DPOConfig, Loss
from rlhf.align.rewards import load_function
from rlhf.align.schema import RolloutFigures
from rlhf.compare import judges
from rlhf.compare.answers import ALIGNED, SFT, ComparedCompletions
from rlhf.compare.config import CompareConfig
from trueup.data.formats import demonstrations, read_demonstrations
from trueup.data.records import Candidate, CandidateSet, Dropped, Message
from trueup.errors import DataError

PAGE = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")


def shown(title: str) -> list[str]:
    """The code that a section shows, piece by piece."""
    section = PAGE.split(f"## {title}\n")[1].split("\n## ")[0]
    pieces = re.findall(r"```(?:python|yaml)\n(.*?)```", section, re.DOTALL)
    assert sum(len(piece.splitlines()) for piece in pieces) < 30
    return pieces


def written_into(module: ModuleType, code: str) -> dict[str, Any]:
    """The module's names, once the code stands at its end. Annotations are read too: a name in them must exist."""
    names = dict(vars(module))
    exec(compile(code, "CONTRIBUTING.md", "exec", dont_inherit=True), names)
    return names


def test_a_reward_is_a_function_in_a_file_of_ones_own(tmp_path: Path) -> None:
    code, keys = shown("Add a reward")
    (tmp_path / "brevity.py").write_text(code, encoding="utf-8")
    [name] = yaml.safe_load(keys)["align"]["rewards"]
    completions = [[{"role": "assistant", "content": text}] for text in ("", "word " * 10, "word " * 90)]
    assert load_function(f"{tmp_path}/{name}")(prompts=[[]] * 3, completions=completions) == [1.0, 0.75, 0.0]


def test_a_format_is_a_converter_and_a_line_of_a_table(tmp_path: Path) -> None:
    path = tmp_path / "tickets.jsonl"
    path.write_text(json.dumps({"ticket": "It is broken.", "reply_sent": "Turn it off and on."}) + "\n")
    with pytest.raises(DataError):
        read_demonstrations(path, Dropped())
    converter, line = shown("Add a format")
    format = written_into(demonstrations, f"{converter}\n{line}")["TICKETS"]
    demonstrations.DEMONSTRATIONS.insert(0, format)
    try:
        [row] = read_demonstrations(path, Dropped())
    finally:
        demonstrations.DEMONSTRATIONS.remove(format)
    assert [message.content for message in row.messages] == ["It is broken.", "Turn it off and on."]


def test_a_judge_is_a_function_and_a_line_of_a_table() -> None:
    code, line = shown("Add a judge")
    table = eval("{" + line + "}", written_into(judges, code))
    keys: dict[str, Any] = {"confidence": 0.95, "seed": 0}
    config = CompareConfig.model_construct(**keys)
    by = table["shorter"](config, judges.LabelOrigins({}, None))
    long, short = ([Candidate(text=text, token_ids=[1], finished=True)] for text in ("a long answer", "short"))
    prompt = [Message(role="user", content="Why?")]
    rows = [
        CandidateSet(prompt_id=str(number), prompt=prompt, split="heldout", candidates=long, sampler={})
        for number in range(8)
    ]
    compared = ComparedCompletions(rows, {SFT: [long] * 8, ALIGNED: [short] * 8})
    assert judges.judge(by, compared, config).win_rate.wins == 8


def test_the_names_of_judges_that_a_campaign_may_use_are_those_of_the_table() -> None:
    [names] = get_args(CompareConfig.model_fields["judges"].annotation)
    assert set(get_args(names)) == set(judges.JUDGES)


def test_a_guard_is_a_function() -> None:
    [code] = shown("Add a guard")
    guard = written_into(guards, code)["falls_silent"]
    lengths: list[dict[str, Any]] = [{"length": length} for length in (40.0, 30.0, 20.0, 10.0, 5.0)]
    course = [RolloutFigures.model_construct(**length) for length in lengths]
    assert "pays for silence" in guard(course)
    assert guard(course[:4]) is None and guard(course[:1] * 9) is None


def test_a_loss_is_a_line_of_a_table() -> None:
    [line] = shown("Add a loss")
    [(name, loss)] = eval("{" + line + "}", vars(rlhf.align.config.labelled)).items()
    assert isinstance(loss, Loss) and name not in LOSSES
    assert name in TRLConfig.__dataclass_fields__["loss_type"].metadata["help"]
    one, _ = get_args(DPOConfig.model_fields["loss_type"].annotation)
    assert get_args(one) == tuple(LOSSES)

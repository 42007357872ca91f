"""No demonstration is trained on that has the words of a held-out prompt or of a check of the comparison."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sft.duplicates
from sft.data import Data, read_data
from trueup import runs
from trueup.check import check
from trueup.config import SplitConfig
from trueup.data.containers import spool
from trueup.data.duplicates.rows import CONTAMINATION, SHARES_CHECK, SHARES_HELDOUT, Contaminated
from trueup.data.formats import read_demonstrations
from trueup.data.records import Dropped, Message, read_rows
from trueup.data.split import is_heldout
from trueup.inspecting.look import split_of
from trueup.models import loading
from trueup.runs import StageRun

HELD = "Why does bread that was baked this morning go stale so much faster in the fridge than on the kitchen counter?"
CHECKED = "A baker sells forty loaves on Monday and twice as many on Tuesday; how many loaves did she sell in all?"
WORKED = "On Tuesday she sold two times forty loaves and so the two days make up for three times forty.\n#### 120"
ASKED = ["How do I sharpen a knife?", "What is rust?", "And now?", "Name a fruit.", "Is snow white?", "What is a loaf?"]


def user(text: str) -> list[Message]:
    return [Message(role="user", content=text)]


def falls(salt: str) -> bool:
    split = SplitConfig(heldout_fraction=0.3, salt=salt)
    return is_heldout(user(HELD), split) and not any(
        is_heldout(user(text), split) for text in [CHECKED, HELD[:50], *ASKED]
    )


SALT = next(str(n) for n in range(10_000) if falls(str(n)))


@pytest.fixture
def read(campaign: Callable[..., Any], jsonl: Callable[..., Path], tmp_path: Path) -> Callable[..., Any]:
    rows = [
        {"prompt": HELD, "completion": "Starch."},
        {"prompt": ASKED[0], "completion": f"You ask that, and I ask: {HELD.upper()}"},
        {"prompt": ASKED[1], "completion": "Iron and water."},
        {"messages": [*turns(ASKED[2], "Yes."), *turns(HELD.replace("?", "..."), "Starch.")]},
        {"prompt": CHECKED, "completion": "120"},
        {"prompt": ASKED[3], "completion": f"Well. {WORKED}"},
        {"messages": turns(HELD[:50], HELD[50:])},
        {"prompt": ASKED[5], "completion": "Bread."},
    ]
    jsonl(tmp_path / "rows.jsonl", rows)
    jsonl(tmp_path / "check.jsonl", [{"question": CHECKED, "answer": WORKED}])
    checks = [{"kind": "gsm8k", "path": "check.jsonl"}]

    def run(**sections: Any) -> tuple[StageRun, Data, list[str]]:
        split = {"heldout_fraction": 0.3, "salt": SALT, "near_duplicates": "keep"}
        sections = {"compare": {"checks": checks}, **sections}
        made = campaign(
            tmp_path,
            split=split,
            **{**sections, "sft": {"data": ["rows.jsonl"], "max_length": 400, **sections.get("sft", {})}},
        )
        config = made.stages["sft"]
        stage = runs.begin(config)
        data = read_data(config, stage, loading.load_base_tokenizer(made.config.model))
        return stage, data, list(data.questions)

    return run


def turns(asked: str, answered: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]


def listed(stage: StageRun) -> list[tuple[str, str, str]]:
    path = stage.dir / CONTAMINATION
    rows = read_rows(path, Contaminated) if path.exists() else []
    return [(row.where.rpartition(":")[2], row.reason, Path(row.exam).name) for row in rows]


WANTED = [
    ("2", SHARES_HELDOUT, "rows.jsonl:1"),
    ("4", SHARES_HELDOUT, "rows.jsonl:1"),
    ("5", SHARES_CHECK, "check.jsonl:1"),
    ("6", SHARES_CHECK, "check.jsonl:1"),
]


def test_what_has_the_words_of_an_exam_is_not_trained_on_and_is_listed(
    read: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    stage, data, trained = read()
    assert trained == [ASKED[1], HELD[:50], ASKED[5]], "words that only two turns together have are no contamination"
    assert listed(stage) == WANTED
    assert data.not_trained == stage.inputs[0].dropped == {SHARES_HELDOUT: 2, SHARES_CHECK: 2}
    (finding,) = [finding for finding in stage.findings if finding.code == "contamination"]
    assert finding.level == "warn", "more than a fifth goes"
    assert (
        "4 of 8 demonstrations (2 have the words of a held-out prompt, 2 have the words of a check)" in finding.message
    )
    assert "they are left out (sft.contamination: drop)" in finding.message
    assert "rows.jsonl:2, which shares 'why does bread that was baked" in capsys.readouterr().out
    manifest = json.loads((stage.finish() / runs.MANIFEST).read_text())
    assert CONTAMINATION in [output["path"] for output in manifest["outputs"]]


def test_a_campaign_that_keeps_it_trains_on_it_and_lists_it(read: Callable[..., Any]) -> None:
    stage, data, trained = read(sft={"contamination": "keep"})
    assert len(trained) == 7 and listed(stage) == WANTED and not data.not_trained
    assert all(row.trained for row in read_rows(stage.dir / CONTAMINATION, Contaminated))
    assert "they are trained on nevertheless" in stage.findings[-1].message


def test_a_check_that_is_added_makes_no_trained_policy_stale(read: Callable[..., Any]) -> None:
    with_check, _, _ = read()
    without, _, trained = read(compare={})
    assert CHECKED in trained and with_check.config.sha256() == without.config.sha256()


def test_of_demonstrations_on_disk_it_is_looked_for_once(
    read: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUEUP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(spool, "LARGE_BYTES", 0)
    first = read()
    monkeypatch.setattr(sft.duplicates, "_shared", None)
    stage, _, trained = read()
    assert trained == first[2] and listed(stage) == WANTED
    with pytest.raises(TypeError):
        read(compare={})


def test_check_and_inspect_tell_it_before_anything_runs(
    read: Callable[..., Any], campaign: Callable[..., Any], tmp_path: Path
) -> None:
    read()
    split = {"heldout_fraction": 0.3, "salt": SALT, "near_duplicates": "keep"}
    checks = [{"kind": "gsm8k", "path": "check.jsonl"}]
    made = campaign(tmp_path, split=split, sft={"data": ["rows.jsonl"], "max_length": 400}, compare={"checks": checks})
    told = "4 of 7 demonstrations (2 have the words of a held-out prompt, 2 have the words of a check), such as "
    assert any(note.startswith(f"sft.contamination: drop: {told}") for note in check(made)[1])
    rows = read_demonstrations(tmp_path / "rows.jsonl", dropped := Dropped(), "refuse", [])
    assert str(split_of(rows, dropped, made).contamination).startswith(told)


def test_what_was_begun_does_not_go_on_with_other_checks(read: Callable[..., Any], tmp_path: Path) -> None:
    """They decide on the rows, so a checkpoint would go on over another data set."""
    read()
    stage, _, _ = read()
    assert stage.resumed
    stage, _, trained = read(compare={})
    assert not stage.resumed and CHECKED in trained
    stage, _, _ = read()
    assert not stage.resumed
    (tmp_path / "check.jsonl").write_text(json.dumps({"question": HELD, "answer": "Starch."}) + "\n")
    copied = runs.begin(stage.config)
    assert not copied.resumed


def test_a_dialogue_that_is_split_is_not_contaminated_by_its_own_later_questions(
    campaign: Callable[..., Any], jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    words = "bread loaf oven crust flour water yeast salt knife board shelf basket".split()

    def asked(n: int, turn: int) -> str:
        return " ".join(words[(n * 7 + turn * 5 + k * (n + turn + 1)) % len(words)] + str(n) for k in range(15))

    rows = [
        {"messages": [message for turn in range(6) for message in turns(asked(n, turn), f"Yes {n}.")]}
        for n in range(30)
    ]
    jsonl(tmp_path / "long.jsonl", rows)
    own = {"data": ["long.jsonl"], "max_length": 160, "overlong": "split", "near_duplicates": "keep"}
    made = campaign(tmp_path, split={"heldout_fraction": 0.3, "near_duplicates": "keep"}, sft=own)
    stage = runs.begin(made.stages["sft"])
    data = read_data(made.stages["sft"], stage, loading.load_base_tokenizer(made.config.model))
    assert data.long_counts.parts_left_out, "some parts begin with a question that would be held out"
    assert listed(stage) == [] and not data.not_trained

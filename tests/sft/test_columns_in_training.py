"""What rows say of themselves reaches the training: a real SFT stage, and what `check` says of the same files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sft.train
from trueup.check import check
from trueup.errors import DataError


def turns(*said: tuple[str, str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"role": role, "content": text, **keys} for role, text, keys in said]


GOOD = [
    {
        "messages": turns(
            ("user", f"Say {n}.", {}),
            ("assistant", "An untrained answer.", {"weight": 0}),
            ("user", "No.", {}),
            ("assistant", f"It is {n}.", {}),
        ),
        "system": "Be brief.",
        "id": n,
        "source": "here",
    }
    for n in range(20)
]
KTO = [{"prompt": f"Name {n}.", "completion": "A bad answer.", "label": False} for n in range(3)]
IMAGES = [{"messages": turns(("user", "Look.", {}), ("assistant", "Seen.", {})), "images": ["sea.png"]}]


@pytest.fixture
def mixed(campaign: Callable[..., Any], tmp_path: Path, jsonl: Callable[..., Path]) -> Callable[..., Any]:
    """The tiny campaign over a file of good rows, rows that are not to be imitated, and rows that cannot be read."""

    def make(on_bad_rows: str) -> Any:
        jsonl(tmp_path / "mine.jsonl", [*GOOD, *KTO, *IMAGES, "{"])
        source = {"path": "mine.jsonl", "on_bad_rows": on_bad_rows}
        return campaign(tmp_path, sft={"data": [source], "max_steps": 1, "max_length": 256})

    return make


def test_what_a_row_says_of_itself_is_what_is_trained(
    mixed: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, str]] = []
    build = sft.train.build_trainer

    def spy(config: Any, stage: Any, base: Any, rows: Any, heldout: Any) -> Any:
        for row in rows:
            trained = [label for label in row.labels if label >= 0]
            seen.append((base.tokenizer.decode(row.input_ids), base.tokenizer.decode(trained)))
        return build(config, stage, base, rows, heldout)

    monkeypatch.setattr(sft.train, "build_trainer", spy)
    folder = sft.train.run(mixed("drop").stages["sft"])
    assert seen and all("Be brief." in read and "An untrained answer." in read for read, _ in seen)
    assert all("It is " in trained and "untrained" not in trained for _, trained in seen)
    assert not any("A bad answer." in read or "Seen." in read for read, _ in seen)

    [source] = json.loads((folder / "manifest.json").read_text())["inputs"]
    assert source["dropped"] == {
        "label: false": 3,
        "bad row: images: what Trueup cannot give to a model": 1,
        "bad row: not JSON": 1,
    }
    assert source["columns_not_read"] == {"id": 20, "source": 20}
    left_out = [json.loads(line) for line in (folder / "left_out.jsonl").read_text().splitlines()]
    assert [(row["where"], row["row"]) for row in left_out] == [
        (f"{tmp_path}/mine.jsonl:24", IMAGES[0]),
        (f"{tmp_path}/mine.jsonl:25", "{"),
    ]


def test_check_says_the_same_before_anything_is_trained(mixed: Callable[..., Any], tmp_path: Path) -> None:
    problems, _ = check(mixed("refuse"))
    assert len(problems) == 1 and "mine.jsonl:24: images: holds" in problems[0] and "mine.jsonl:25: " in problems[0]
    problems, notes = check(mixed("drop"))
    assert problems == []
    note = next(note for note in notes if note.startswith("sft.data: "))
    assert note == (
        f"sft.data: {tmp_path}/mine.jsonl: 20 rows, dropped: 1 bad row: images: what Trueup cannot give to a model, "
        "1 bad row: not JSON, 3 label: false; columns not read: id (20), source (20)"
    )
    with pytest.raises(DataError, match="2 problems"):
        sft.train.run(mixed("refuse").stages["sft"])

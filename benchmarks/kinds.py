"""How often do cue words tell the kind of a task that people say it is?

    python benchmarks/kinds.py [DATA_DIR]

The starter prompts name their kinds. DATA_DIR may have gsm8k/train.jsonl, which is all mathematics, and
mt_bench/question.jsonl, whose categories are taken as ours where they name one (`trueup.inspecting.kinds.named_kind`).
The starter demonstrations are printed last and apart: the cues were written with them in view.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

from trueup.data.records import read_jsonl
from trueup.inspecting.kinds import named_kind, told_kind
from trueup.statistics.intervals import wilson

STARTER = Path(__file__).parents[1] / "trueup/data/starter"
Labelled = list[tuple[str, str]]
"""Texts, each with its kind."""


def labelled(folder: Path | None) -> dict[str, Labelled]:
    sets = {
        "starter prompts": [(row["prompt"][0]["content"], row["category"]) for row in rows(STARTER / "prompts.jsonl")]
    }
    if folder is not None:
        sets["GSM8K"] = [(row["question"], "mathematics") for row in rows(folder / "gsm8k/train.jsonl")]
        questions = rows(folder / "mt_bench/question.jsonl")
        sets["MT-bench"] = [(row["turns"][0], named_kind(row["category"]) or "none") for row in questions]
    starter = rows(STARTER / "demonstrations.jsonl")
    sets["starter demonstrations, in view"] = [(row["messages"][0]["content"], row["category"]) for row in starter]
    return sets


def rows(path: Path) -> list[Any]:
    return [row for _, row in read_jsonl(path)]


def main(arguments: list[str]) -> None:
    for name, texts in labelled(Path(arguments[0]) if arguments else None).items():
        told = Counter((kind, told_kind(text).kind) for text, kind in texts)
        right = wilson(sum(count for (kind, other), count in told.items() if kind == other), len(texts))
        print(f"{name}: {right.value:.1%} [{100 * right.low:.1f}, {100 * right.high:.1f}] of {len(texts)}")
        for kind in sorted({kind for kind, _ in told}):
            others = [f"{other} {count}" for (own, other), count in told.most_common() if own == kind]
            print(f"    {kind}: {', '.join(others)}")


if __name__ == "__main__":
    main(sys.argv[1:])

"""Does exporting the import of a public preference set give back what its people said, exactly?

    python benchmarks/roundtrip.py DATA_DIR

DATA_DIR has pandalm/*.json, finegrained_qa/*.json and oasst_en_100/*.jsonl, or some of them. Each file is imported into
a store of its own and exported in every form. The source is read here a second time, by itself, and compared:

    verdicts    of one annotator on two answers, ties included: source and exported rankings as multisets
    ranks       OASST: each answer's place among its siblings, group by group
    strict      verdicts without a tie, and the rows of the TRL file and of the `datasets` directory
    again       the file a second time, and the export into another store: nothing is added, nothing is changed

Exit code 1 if anything differs.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

from trueup.config import SplitConfig
from trueup.models.config import ModelConfig
from ui.labels.config import LabelConfig
from ui.labels.exchange import export_labels, import_labels

Verdict = tuple[str, str, str, str, str]
"""Prompt, two answers in alphabetical order, annotator, and which is better: `<` the first, `>` the second, or `=`."""

# ---- The sources, read independently of trueup/data ----------------------------------------------------------


def verdict(prompt: str, first: str, second: str, annotator: str, better: int) -> Verdict:
    """`better` is negative if the first is, 0 for a tie."""
    if first > second:
        first, second, better = second, first, -better
    return prompt, first, second, annotator, "=" if better == 0 else "<" if better < 0 else ">"


def pandalm(path: Path) -> Iterator[Verdict]:
    for row in json.loads(path.read_text(encoding="utf-8")):
        prompt = "\n\n".join(text for text in (row["instruction"], row["input"]) if text.strip())
        for name in (key for key in row if key.startswith("annotator")):
            yield verdict(prompt, row["response1"], row["response2"], name, {0: 0, 1: -1, 2: 1}[row[name]])


def finegrained_qa(path: Path) -> Iterator[Verdict]:
    for row in json.loads(path.read_text(encoding="utf-8")):
        prompt = "\n\n".join([row["question"], *("\n".join(lines) for lines in row["passages"])])
        for (i, j), said in zip(combinations((1, 2, 3, 4), 2), row["preference"], strict=True):
            yield verdict(prompt, row[f"prediction {i}"], row[f"prediction {j}"], "unknown", {0: 0, 1: -1, 2: 1}[said])


def oasst_groups(path: Path) -> Iterator[tuple[str, list[tuple[str, int]]]]:
    """The conversation before, and the text and rank of each ranked answer to it."""
    for line in path.read_text(encoding="utf-8").splitlines():
        waiting: list[tuple[tuple[str, ...], Any]] = [((), json.loads(line)["prompt"])]
        while waiting:
            before, message = waiting.pop()
            here = (*before, message["text"])
            ranked = [(reply["text"], reply["rank"]) for reply in message["replies"] if reply.get("rank") is not None]
            if len(ranked) > 1:
                yield "\n".join(here), ranked
            waiting += [(here, reply) for reply in message["replies"]]


def oasst(path: Path) -> Iterator[Verdict]:
    for prompt, ranked in oasst_groups(path):
        for (first, rank), (second, other) in combinations(ranked, 2):
            yield verdict(prompt, first, second, "unknown", rank - other)


SETS = {
    "pandalm": ("pandalm/*.json", pandalm),
    "finegrained_qa": ("finegrained_qa/*.json", finegrained_qa),
    "oasst_en_100": ("oasst_en_100/*.jsonl", oasst),
}

# ---- The exports -------------------------------------------------------------------------------------------------


def asked(row: dict[str, Any]) -> str:
    return "\n".join(message["content"] for message in row["prompt"])


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def from_rankings(rows: list[dict[str, Any]]) -> Iterator[Verdict]:
    for row in rows:
        place = {index: tier for tier, indices in enumerate(row["tiers"]) for index in indices}
        for i, j in combinations(sorted(place), 2):
            answers = row["completions"]
            yield verdict(asked(row), answers[i], answers[j], row["annotator"], place[i] - place[j])


def from_pairs(rows: list[dict[str, Any]]) -> Iterator[Verdict]:
    for row in rows:
        [chosen], [rejected] = row["chosen"], row["rejected"]
        yield verdict(asked(row), chosen["content"], rejected["content"], row["annotator"], -1)


def groups_from_rankings(rows: list[dict[str, Any]]) -> Iterator[tuple[str, tuple[tuple[str, int], ...]]]:
    for row in rows:
        ranks = [(row["completions"][index], tier) for tier, indices in enumerate(row["tiers"]) for index in indices]
        yield asked(row), tuple(sorted(ranks))


# ---- Compared ----------------------------------------------------------------------------------------------------


def compare(name: str, path: Path, folder: Path) -> bool:
    """Import, export and compare one file; prints what was found."""
    source = Counter(SETS[name][1](path))
    strict = Counter({one: number for one, number in source.items() if one[-1] != "="})
    config, other = (LabelConfig(model=ModelConfig(), split=SplitConfig(), run_dir=folder / run) for run in ("a", "b"))
    start = time.perf_counter()
    print(f"\n{name}: {path.name}\n  {import_labels(config, path)}  ({time.perf_counter() - start:.1f} s)")
    print(f"  {import_labels(config, path)}")
    print(f"  {export_labels(config, folder / 'rankings.jsonl', 'jsonl', 'whole')}")
    print(f"  {export_labels(config, folder / 'pairs.jsonl', 'jsonl', 'pairs')}")
    print(f"  {export_labels(config, folder / 'dataset', 'datasets', 'pairs')}")
    import_labels(other, folder / "rankings.jsonl")
    export_labels(other, folder / "again.jsonl", "jsonl", "whole")

    from datasets import load_from_disk

    rankings, again = rows_of(folder / "rankings.jsonl"), rows_of(folder / "again.jsonl")
    arrow = [row for split in load_from_disk(str(folder / "dataset")).values() for row in split]
    found = {
        "verdicts": (source, Counter(from_rankings(rankings))),
        "strict verdicts, TRL": (strict, Counter(from_pairs(rows_of(folder / "pairs.jsonl")))),
        "strict verdicts, datasets": (strict, Counter(from_pairs(arrow))),
        "verdicts, imported again": (source, Counter(from_rankings(again))),
        "label ids, imported again": (Counter(r["label_id"] for r in rankings), Counter(r["label_id"] for r in again)),
    }
    if name.startswith("oasst"):
        groups = [(prompt, tuple(sorted(ranked))) for prompt, ranked in oasst_groups(path)]
        levels = [(p, {rank: level for level, rank in enumerate(sorted({r for _, r in g}))}, g) for p, g in groups]
        ranks = Counter((prompt, tuple((text, level[rank]) for text, rank in group)) for prompt, level, group in levels)
        found["groups of ranked answers"] = (ranks, Counter(groups_from_rankings(rankings)))
    print(f"  {'':28} {'source':>8} {'exported':>8} {'equal':>8} {'ties':>6}")
    for what, (wanted, got) in found.items():
        ties = sum(number for one, number in (wanted & got).items() if isinstance(one, tuple) and one[-1] == "=")
        print(f"  {what:28} {wanted.total():8} {got.total():8} {(wanted & got).total():8} {ties or '':>6}")
    return all(wanted == got for wanted, got in found.values())


def main(data: Path) -> int:
    """Compare every set that is there; 0 if all are exact."""
    exact = {}
    for name, (pattern, _) in SETS.items():
        for path in sorted(data.glob(pattern)):
            with tempfile.TemporaryDirectory() as folder:
                exact[path] = compare(name, path, Path(folder))
    if not exact:
        sys.exit(f"{data}: has none of {', '.join(pattern for pattern, _ in SETS.values())}")
    print(
        "\nall exact"
        if all(exact.values())
        else f"\nNOT EXACT: {', '.join(str(p) for p, ok in exact.items() if not ok)}"
    )
    return 0 if all(exact.values()) else 1


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1])))

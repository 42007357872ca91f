"""Is what real data sets hold read as it means?

    python benchmarks/shapes.py DIR [--table]

DIR has shapes.json and shapes/: each case names a file, what it is for (`use`), how many rows it holds, texts that must
be asked or trained (`must`, with the prefix `TRAINED:` what an assistant turn with loss says), texts that must not
(`must_not`), of preferences the completion that must come out best (`best`), and of published shapes all that each row
means (`means`): its turns, or what is asked, the order of the answers, how much better, by whom, by which criteria,
why, and the row's own id. A file is right when it is read so, refused when an error names the file, the line, a column
and what to do, and wrong when it is read otherwise, or when the error does not say so much. Exit code 1 if a file is
wrong. `--table` prints the table of docs/formats.md instead.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from trueup.data.formats import read_demonstrations, read_preferences, read_prompts
from trueup.data.records import Dropped
from trueup.errors import DataError

READ: dict[str, Any] = {
    "sft.data": read_demonstrations,
    "sample.prompts": read_prompts,
    "labels import": read_preferences,
}
Meaning = dict[str, Any]


class Outcome(NamedTuple):
    verdict: str
    """right, refused or wrong"""
    why: str


def judge(case: dict[str, Any], folder: Path) -> Outcome:
    path = folder / "shapes" / case["file"]
    try:
        rows = READ[case["use"]](path, Dropped())
    except DataError as error:
        missing = lacks(str(error), path)
        return Outcome("wrong", f"the error lacks {missing}: {error}") if missing else Outcome("refused", str(error))
    problems = list(differences(case, rows))
    return Outcome("wrong", "; ".join(problems)) if problems else Outcome("right", f"{len(rows)} rows")


def lacks(error: str, path: Path) -> str | None:
    """What an error does not name of file, line, column and remedy."""
    first = next((line for line in error.split("\n") if re.search(r":\d+: | entry \d+: ", line)), "")
    text = path.read_text(encoding="utf-8")
    keys = set(re.findall(r'"(\w+)"\s*:', text))
    if str(path) not in first:
        return "the file and the line"
    if not keys & set(re.findall(r"\w+", first.split(": ", 1)[1])):
        return "a column"
    return None if re.search(r"; \w+ |\n  \w+ ", error) else "what to do"


def differences(case: dict[str, Any], rows: list[Any]) -> list[str]:
    """Where rows are not what a case says."""
    said, found = [], []
    for row in rows:
        messages = getattr(row, "messages", None) or row.prompt
        said += [message.said for message in messages] + list(getattr(row, "completions", []))
        said += [json.dumps(message.tools) for message in messages if message.tools]
        said += [f"TRAINED:{one.said}" for one in messages if one.role == "assistant" and one.trained]
    text = "\n".join(said)
    found += [f"lacks {one!r}" for one in case["must"] if one not in text]
    found += [f"holds {one!r}" for one in case["must_not"] if one in text]
    if (
        "means" in case
        and (what := [preference_means(row) if hasattr(row, "tiers") else turns_of(row) for row in rows])
        != case["means"]
    ):
        found += [f"row {i} means {one}" for i, one in enumerate(what) if one not in case["means"]] or ["the order"]
    if case["rows"] not in (None, len(rows)):
        found.append(f"{len(rows)} rows for {case['rows']}")
    if case["best"] is not None:
        best = [row.completions[row.tiers[0][0]] for row in rows]
        found += [] if best == case["best"] else [f"best are {best}"]
    return found


def turns_of(row: Any) -> list[list[str]]:
    """Who says or calls what in a demonstration or a prompt, which answers carry no loss, and the tools' names."""
    messages = getattr(row, "messages", None) or row.prompt
    tools = [tool["function"]["name"] for tool in messages[0].tools or []]
    turns = [[one.role if one.trained else f"{one.role}, not trained", one.said] for one in messages]
    return [["tools", *tools]] * bool(tools) + turns


def preference_means(row: Any) -> Meaning:
    """All that a preference says, of what has a value."""

    def order(tiers: list[list[int]]) -> list[list[str]]:
        return [sorted(row.completions[i] for i in tier) for tier in tiers]

    criteria = {
        name: order(better) if isinstance(better, list) else None if better is None else row.completions[better]
        for name, better in (row.criteria or {}).items()
    }
    annotator = None if row.annotator == "unknown" else row.annotator
    more = {"strength": row.strength, "both_bad": row.both_bad, "annotator": annotator, "criteria": criteria}
    more |= {"why": row.explanation, "id": row.row_id}
    return {"asks": turns_of(row), "order": order(row.tiers)} | {key: value for key, value in more.items() if value}


def table(folder: Path) -> str:
    """The published shapes, and what a preference says beside the order of its answers, as docs/formats.md has them."""
    lines = ["| Data set | Read by | Beside the order of the answers |", "|---|---|---|"]
    for case in json.loads((folder / "shapes.json").read_text(encoding="utf-8")):
        if "means" in case:
            rows = [row for row in case["means"] if isinstance(row, dict)]
            more = dict.fromkeys(key for row in rows for key in row if key not in ("asks", "order"))
            lines.append(f"| {case['shape_of']} | `{case['use']}` | {', '.join(sorted(more))} |")
    return "\n".join(lines)


def main(folder: Path) -> int:
    cases = json.loads((folder / "shapes.json").read_text(encoding="utf-8"))
    counts: dict[str, Counter[str]] = {use: Counter() for use in READ}
    for case in cases:
        outcome = judge(case, folder)
        counts[case["use"]][outcome.verdict] += 1
        if outcome.verdict != "right":
            print(f"{outcome.verdict:<8} {case['file']:<36} {case['shape_of']}\n  {outcome.why.splitlines()[-2:][0]}")
    for use, of_use in counts.items():
        print(f"{use}: {_in_words(of_use)}")
    total = sum(counts.values(), Counter[str]())
    print(f"{len(cases)} files: {_in_words(total)}")
    return 1 if total["wrong"] else 0


def _in_words(counts: Counter[str]) -> str:
    return f"{counts['right']} right, {counts['refused']} refused, {counts['wrong']} wrong"


if __name__ == "__main__":
    if "--table" in sys.argv:
        print(table(Path(sys.argv[1])))
    else:
        sys.exit(main(Path(sys.argv[1])))

"""Files in the shapes of published data sets mean what shapes.json says: who is better, how much, by whom, why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import shapes
from trueup.data.formats import read_demonstrations, read_preferences
from trueup.data.formats.rendered import TEMPLATES
from trueup.data.pairs import pairs_of, ties_of
from trueup.data.records import Dropped, Ranking
from trueup.errors import DataError

CASES = Path(__file__).parents[2] / "data" / "cases"
DOCS = Path(__file__).parents[3] / "docs" / "formats.md"
PUBLISHED = [case for case in json.loads((CASES / "shapes.json").read_text(encoding="utf-8")) if "means" in case]
PREFERENCES = [case for case in PUBLISHED if case["use"] == "labels import"]


def rows_of(path: Path) -> Any:
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]


def written(folder: Path, name: str, rows: list[Any]) -> Path:
    path = folder / name
    text = json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


def means(path: Path) -> list[Any]:
    return [shapes.preference_means(row) for row in read_preferences(path, Dropped())]


def replaced(value: Any, texts: dict[str, str]) -> Any:
    """The value with every text put in place of another, also within a text."""
    if isinstance(value, dict):
        return {key: replaced(one, texts) for key, one in value.items()}
    if isinstance(value, list):
        return [replaced(one, texts) for one in value]
    if isinstance(value, str):
        for number, old in enumerate(texts):
            value = value.replace(old, f"\0{number}\0")
        for number, new in enumerate(texts.values()):
            value = value.replace(f"\0{number}\0", new)
    return value


def in_order(meaning: Any) -> Any:
    """The meaning with the texts of each tier in alphabetical order."""

    def tiers(order: Any) -> Any:
        return [sorted(tier) for tier in order] if isinstance(order, list) else order

    criteria = {name: tiers(order) for name, order in meaning.get("criteria", {}).items()}
    return {**meaning, "order": tiers(meaning["order"]), **({"criteria": criteria} if criteria else {})}


@pytest.mark.parametrize("case", PREFERENCES, ids=[case["file"] for case in PREFERENCES])
def test_answers_that_change_places_change_places_in_what_a_row_means(case: dict[str, Any], tmp_path: Path) -> None:
    texts: dict[str, str] = {}
    for meaning in case["means"]:
        first, *_, last = sorted({text for tier in meaning["order"] for text in tier})
        texts |= {first: last, last: first}
    rows = replaced(rows_of(CASES / "shapes" / case["file"]), texts)
    expected = [in_order({**replaced(one, texts), "asks": one["asks"]}) for one in case["means"]]
    assert means(written(tmp_path, case["file"], rows)) == expected


def test_the_documentation_has_the_table_of_published_shapes() -> None:
    assert shapes.table(CASES) in DOCS.read_text(encoding="utf-8")


# ---- Criteria ---------------------------------------------------------------------------------------------------


def test_an_order_of_several_answers_by_a_criterion_becomes_the_better_one_of_each_pair() -> None:
    ranking = Ranking(
        label_id="1", prompt_id="p", prompt=[], split="train", source="import", annotator="ann", created_utc="now",
        completions=["a", "b", "c"], completion_token_ids=[None] * 3, finished=[True] * 3, tiers=[[0], [1, 2]],
        criteria={"honesty": [[2], [0, 1]], "safety": [[1, 0]]},
    )  # fmt: skip
    pairs = {pair.texts: pair.better_by for pair in [*pairs_of(ranking), *ties_of(ranking)]}
    assert pairs == {
        ("a", "b"): {"honesty": None, "safety": None},
        ("a", "c"): {"honesty": "rejected"},
        ("b", "c"): {"honesty": "rejected"},
    }


def test_a_criterion_that_names_an_answer_which_is_not_there_is_refused(tmp_path: Path) -> None:
    row = {"prompt": "Hi", "completions": ["A", "B"], "tiers": [[0], [1]], "criteria": {"honesty": 2}}
    with pytest.raises(DataError, match=r"criteria .* name no completion of 2"):
        means(written(tmp_path, "rows.jsonl", [row]))


# ---- Marks ------------------------------------------------------------------------------------------------------


def marked(*marks: tuple[str, Any], name: str = "label", **more: Any) -> list[Any]:
    return [{"prompt": "Hi", "completion": text, name: mark, **more} for text, mark in marks]


@pytest.mark.parametrize(
    ("rows", "order", "both_bad"),
    [
        (marked(("A", True), ("B", False)), [["A"], ["B"]], False),
        (marked(("A", False), ("B", True)), [["B"], ["A"]], False),
        (marked(("A", True), ("B", True)), [["A", "B"]], False),
        (marked(("A", False), ("B", False)), [["A", "B"]], True),
        (marked(("A", "up"), ("B", "down"), ("C", "up"), name="thumbs"), [["A", "C"], ["B"]], False),
        (marked(("A", 1), ("B", 0), name="is_good"), [["A"], ["B"]], False),
    ],
    ids=str,
)
def test_marks_of_answers_to_one_prompt_are_a_ranking(
    rows: list[Any], order: list[Any], both_bad: bool, tmp_path: Path
) -> None:
    [row] = read_preferences(written(tmp_path, "rows.jsonl", rows), Dropped())
    assert (shapes.preference_means(row)["order"], row.both_bad) == (order, both_bad)


@pytest.mark.parametrize(
    "rows",
    [
        marked(("A", True)),
        [*marked(("A", True)), *[{**row, "prompt": "Bye"} for row in marked(("B", False))]],
        [*marked(("A", True), annotator="ann"), *marked(("B", False), annotator="bob")],
        marked(("A", 1), ("B", 0)),
    ],
    ids=["one", "two prompts", "two annotators", "a number that may name a class"],
)
def test_a_mark_that_no_other_answers_to_is_refused_by_its_name(rows: list[Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="label: says that one answer is good or bad"):
        means(written(tmp_path, "rows.jsonl", rows))


# ---- What carries loss ------------------------------------------------------------------------------------------

EARLIER = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
ASKED = {"role": "user", "content": "Why?"}


@pytest.mark.parametrize(
    ("row", "trained"),
    [
        ({"prompt": [*EARLIER, ASKED], "completion": "So."}, [False, True]),
        ({"input": [*EARLIER, ASKED], "output": "So."}, [False, True]),
        ({"history": [["Hi", "Yes?"]], "query": "Why?", "response": "So."}, [True, True]),
        ({"history": [["Hi", "Yes?"]], "query": "Why?", "response": "So.", "mask_history": True}, [False, True]),
        ({"conversations": ["Hi", "Yes?", "Why?", "So."], "last_turn_only": "yes"}, [False, True]),
        ({"data": ["Hi", "Yes?", "Why?", "So."], "last_turn_only": 0}, [True, True]),
    ],
    ids=str,
)
def test_answers_within_a_question_carry_no_loss_and_a_row_may_say_so_of_all_but_the_last(
    row: Any, trained: list[bool], tmp_path: Path
) -> None:
    [demonstration] = read_demonstrations(written(tmp_path, "rows.jsonl", [row]), Dropped())
    assert [one.trained for one in demonstration.messages if one.role == "assistant"] == trained


# ---- Rendered text ----------------------------------------------------------------------------------------------

RENDERED = {case["shape_of"]: case for case in PUBLISHED if case["file"].startswith("n_text")}


@pytest.mark.parametrize("case", RENDERED.values(), ids=list(RENDERED))
def test_a_rendered_text_is_read_whole_or_refused(case: dict[str, Any], tmp_path: Path) -> None:
    text = rows_of(CASES / "shapes" / case["file"])[-1]["text"]
    whole = means_of_text(text, tmp_path)
    assert whole == case["means"][-1]
    for template in TEMPLATES:
        broken = text.replace(template.end, f"{template.end} and more", 1)
        if broken != text:
            assert means_of_text(broken, tmp_path) is None, f"{template.end} ends a turn, and something follows it"


def means_of_text(text: str, folder: Path) -> Any:
    try:
        [row] = read_demonstrations(written(folder, "rows.jsonl", [{"text": text}]), Dropped())
    except DataError as error:
        assert "rows.jsonl:1: text: " in str(error)
        return None
    return shapes.turns_of(row)

"""Labels in and out of the store: what comes back is what was said, and a labelling browser is told nothing else."""

from __future__ import annotations

import importlib.util
import json
import sqlite3
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import sqlalchemy as sa

from trueup import cli
from trueup.data.records import Candidate, Preference, Ranking, read_rows
from trueup.errors import DataError, TrueupError
from ui.blindcheck.run import Report, blindcheck, copy_store, order_says
from ui.blindcheck.secrets import Response, Secret
from ui.figures.text import stats
from ui.label.run import prepare, run
from ui.labels.backup import backup
from ui.labels.config import LabelConfig
from ui.labels.exchange import export_labels, import_labels
from ui.labels.service import LabelService
from ui.labels.store import Store
from ui.labels.tables import event, item
from ui.labels.tasks import Judgement, Settings

Jsonl = Callable[[Path, list[Any]], Path]
ROUNDTRIP = Path(__file__).parents[3] / "benchmarks" / "roundtrip.py"


def labels_of(config: LabelConfig, to: Path) -> list[Ranking]:
    export_labels(config, to, rankings="whole")
    return read_rows(to, Ranking)


def count(config: LabelConfig, table: sa.Table) -> int:
    store = Store(config.store_url)
    try:
        with store.read() as db:
            return db.scalar(sa.select(sa.func.count()).select_from(table)) or 0
    finally:
        store.close()


@pytest.fixture
def other(campaign: Any, tmp_path: Path) -> LabelConfig:
    """A campaign with a store of its own."""
    return campaign.label(store=f"sqlite:///{tmp_path / 'other.sqlite'}")


def labelled(config: LabelConfig, answers: list[dict[str, Any]], who: str = "annotator-a1b2c3") -> None:
    """Answer the first tasks of a campaign, as the page does."""
    store = Store(config.store_url)
    try:
        prepare(config, store)
        service = LabelService(store, Settings.of(config))
        for number, answer in enumerate(answers):
            token = service.tasks(who)[0].token
            service.label(who, Judgement(str(uuid.uuid4()), token, seconds=4.25 + number, device="key", **answer))
    finally:
        store.close()


GRADED = [
    {"choice": "a_much", "note": "It says why."},
    {"choice": "b_slightly"},
    {"choice": "both_bad"},
    {"choice": "tie"},
    {"choice": "skip"},
    {"choice": "b"},
]

# ---- Public formats, exactly ------------------------------------------------------------------------------------


def node(role: str, text: str, *replies: Any, rank: int | None = None) -> dict[str, Any]:
    return {"message_id": text, "role": role, "text": text, "rank": rank, "replies": list(replies)}


def pandalm(first: str, second: str, *verdicts: int, instruction: str = "Name a fruit.", given: str = "") -> Any:
    said = {f"annotator{i}": verdict for i, verdict in enumerate(verdicts, start=1)}
    return {"instruction": instruction, "input": given, "response1": first, "response2": second, **said}


def question(name: str, verdicts: list[int], passages: list[list[str]]) -> dict[str, Any]:
    answers = {f"prediction {i}": f"{name} {i}" for i in (1, 2, 3, 4)}
    return {"question": name, "passages": passages, **answers, "preference": verdicts}


@pytest.fixture
def public(tmp_path: Path) -> Path:
    """Files in the public formats, with what is odd in the real ones."""
    pairs = [
        pandalm("Pear.", "Fig.", 1, 2, 0),
        pandalm("Pear.", "Fig.", 1, 1, 0),  # two models said the same: judged again, partly otherwise
        pandalm("Fig.", "Pear.", 0, 2, 1),  # and with the sides swapped
        pandalm("", "Fig.", 1, 1, 0),  # saying nothing was preferred, and found as good
        pandalm("Plum.", "Plum. ", 0, 1, 2),  # but for a space the same
        pandalm("Pear.", "Fig.", 2, 2, 2, given="It is yellow."),
        pandalm("3", "4", 1, 1, 1, instruction=" ", given="1 + 2"),
    ]
    questions = [
        question("order", [1, 2, 0, 2, 2, 1], [["Title", "One.", "Two."], ["Other", "Three."]]),
        question("circle", [1, 2, 1, 1, 1, 1], []),
        question("ties that do not carry over", [0, 1, 1, 0, 1, 1], []),
        question("all tied", [0, 0, 0, 0, 0, 0], [["Title", "One."]]),
    ]
    later = node(
        "prompter", "And then?", node("assistant", "C", rank=3), node("assistant", "D", rank=1), node("assistant", "E")
    )
    trees = [
        {
            "message_tree_id": "1",
            "prompt": node(
                "prompter",
                "Why?",
                node("assistant", "B", later, rank=1),
                node("assistant", "A", rank=0),
                node("assistant", "A2", rank=1),
            ),
        },
        {"message_tree_id": "2", "prompt": node("prompter", "Alone?", node("assistant", "Yes", rank=0))},
    ]
    for name, text in {
        "pandalm/pairs.json": json.dumps(pairs),
        "finegrained_qa/questions.json": json.dumps(questions),
        "oasst_en_100/trees.jsonl": "".join(json.dumps(tree) + "\n" for tree in trees),
    }.items():
        (tmp_path / "public" / name).parent.mkdir(parents=True)
        (tmp_path / "public" / name).write_text(text)
    return tmp_path / "public"


@pytest.fixture
def roundtrip() -> ModuleType:
    spec = importlib.util.spec_from_file_location("roundtrip", ROUNDTRIP)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_exporting_the_import_of_public_sets_gives_back_every_verdict_tie_and_rank(
    public: Path, roundtrip: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert roundtrip.main(public) == 0, capsys.readouterr().out
    shown = capsys.readouterr().out
    figures = {line[:28].strip(): line[28:].split() for line in shown.splitlines() if line[28:].split()[1:2]}
    assert "21 labels imported" in shown and "19 labels imported" not in shown
    assert figures["groups of ranked answers"] == ["2", "2", "2"]
    assert shown.count("0 labels imported; ") == 3, "the file a second time adds nothing"


def test_the_round_trip_check_notices_a_verdict_that_is_not_the_sources(public: Path, roundtrip: ModuleType) -> None:
    kept = {"prompt": [{"content": "Name a fruit."}], "completions": ["Fig.", "Pear."], "annotator": "annotator1"}
    [right] = roundtrip.from_rankings([{**kept, "tiers": [[1], [0]]}])
    [wrong] = roundtrip.from_rankings([{**kept, "tiers": [[0], [1]]}])
    said = Counter(roundtrip.pandalm(public / "pandalm" / "pairs.json"))
    assert said[right] == 2 and said[wrong] == 0


# ---- In ---------------------------------------------------------------------------------------------------------

CASES = Path(__file__).parents[2] / "data" / "cases"
PUBLISHED = [
    case
    for case in json.loads((CASES / "shapes.json").read_text(encoding="utf-8"))
    if "means" in case and case["use"] == "labels import"
]


def test_what_a_published_shape_means_is_in_the_store_and_in_its_export(other: LabelConfig, tmp_path: Path) -> None:
    for case in PUBLISHED:
        import_labels(other, CASES / "shapes" / case["file"])
        stored = [_meaning_of(row) for row in labels_of(other, tmp_path / case["file"])]
        assert [meaning for meaning in case["means"] if meaning not in stored] == [], case["file"]


def _meaning_of(row: Ranking) -> dict[str, Any]:
    """What a stored label says, in the words of shapes.json."""

    def order(tiers: list[list[int]]) -> list[list[str]]:
        return [sorted(row.completions[i] for i in tier) for tier in tiers]

    criteria = {
        name: order(better) if isinstance(better, list) else None if better is None else row.completions[better]
        for name, better in (row.criteria or {}).items()
    }
    more = {"strength": row.strength, "both_bad": row.both_bad, "criteria": criteria, "why": row.note}
    more |= {"id": row.row_id, "annotator": None if row.annotator == "unknown" else row.annotator}
    asks = [[one.role, one.content] for one in row.prompt]
    return {"asks": asks, "order": order(row.tiers)} | {key: value for key, value in more.items() if value}


def test_a_file_that_says_otherwise_why_or_by_which_criterion_corrects_what_it_said(
    other: LabelConfig, jsonl: Jsonl, tmp_path: Path
) -> None:
    row = {"id": 7, "prompt": "Hi", "response_a": "A", "response_b": "B", "winner": "a", "explanation": "Short."}
    for more, added in (
        ({"safety_winner": "a"}, 1),
        ({"safety_winner": "b"}, 1),
        ({"safety_winner": "b"}, 0),
        ({"safety_winner": "b", "explanation": "Kind."}, 1),
        ({"safety_winner": "b", "explanation": "Kind.", "id": 8}, 1),
    ):
        message = import_labels(other, jsonl(tmp_path / "rows.jsonl", [{**row, **more}]))
        assert f"{added} labels imported" in message
    [label] = labels_of(other, tmp_path / "out.jsonl")
    assert (label.criteria, label.note, label.row_id) == ({"safety": 1}, "Kind.", "8")


def test_what_was_exported_comes_back_as_it_was_said(campaign: Any, other: LabelConfig, tmp_path: Path) -> None:
    config = campaign.label(criteria=["helpful"])
    labelled(config, [{**answer, "criteria": {"helpful": "b"}} if "note" in answer else answer for answer in GRADED])
    said = labels_of(config, tmp_path / "out.jsonl")
    assert [row.strength for row in said] == [3, 1, None, None, 2]
    assert [row.both_bad for row in said] == [False, False, True, False, False]
    assert [row.seconds for row in said] == [4.25, 5.25, 6.25, 7.25, 9.25]
    assert said[0].note == "It says why." and said[0].criteria == {"helpful": said[0].tiers[1][0]}
    assert all(
        row.display_order and sorted(row.display_order) == [0, 1] and row.selection and row.propensity for row in said
    )

    assert "5 labels imported" in import_labels(other, tmp_path / "out.jsonl")
    known = {"source": "import", "selection": None, "propensity": None}
    assert labels_of(other, tmp_path / "again.jsonl") == [row.model_copy(update=known) for row in said]
    events = count(other, event)
    assert "0 labels imported; 5 were in the store already" in import_labels(other, tmp_path / "out.jsonl")
    assert "0 labels imported; 5 were in the store already" in import_labels(config, tmp_path / "again.jsonl")
    assert count(other, event) == events


def test_labels_go_in_and_out_and_into_the_check_alike_on_every_database(
    campaign: Any, store_url: str, tmp_path: Path
) -> None:
    config = campaign.label()
    labelled(config, GRADED)
    said = labels_of(config, tmp_path / "out.jsonl")
    elsewhere = campaign.label(store=store_url)
    for added in (5, 0):
        assert f"{added} labels imported" in import_labels(elsewhere, tmp_path / "out.jsonl")
    known = {"source": "import", "selection": None, "propensity": None}
    expected = [row.model_copy(update=known) for row in said]
    assert labels_of(elsewhere, tmp_path / "again.jsonl") == expected
    copy = campaign.label(store=f"sqlite:///{tmp_path / 'copy.sqlite'}")
    copy_store(store_url, copy.store_url)
    assert labels_of(copy, tmp_path / "copied.jsonl") == expected


def test_pairs_of_a_ranking_come_back_as_the_ranking(campaign: Any, other: LabelConfig, tmp_path: Path) -> None:
    config = campaign.label(task="ranking")
    labelled(config, [{"order": [[1], [0], [2]]}, {"order": [[2], [0, 1]]}, {"order": [[0, 1, 2]]}])
    whole = labels_of(config, tmp_path / "whole.jsonl")
    text = export_labels(config, tmp_path / "pairs.jsonl")
    assert "5 pairs of 3 labels (3 human) of 1 annotators; 1 are ties and give none" in text

    import_labels(other, tmp_path / "pairs.jsonl")
    back = labels_of(other, tmp_path / "back.jsonl")
    assert [(row.label_id, row.seconds, row.annotator) for row in back] == [
        (row.label_id, row.seconds, row.annotator) for row in whole[:2]
    ]

    def order(row: Ranking) -> list[set[str]]:
        return [{row.completions[index] for index in tier} for tier in row.tiers]

    assert [order(row) for row in back] == [order(row) for row in whole[:2]]
    assert [row.completions[index] for row in (back[0], whole[0]) for index in row.display_order or []][:3] == [
        whole[0].completions[index] for index in whole[0].display_order or []
    ]
    assert back[1].display_order is None, "where the tied answers stood to each other is in no pair"
    assert "0 labels imported; 2 were in" in import_labels(config, tmp_path / "pairs.jsonl"), "in its own store too"


def test_annotators_who_disagree_about_a_pair_judged_one_item(other: LabelConfig, tmp_path: Path, jsonl: Jsonl) -> None:
    pair = {"prompt": "Hi", "chosen": "Hello", "rejected": "What?"}
    swapped = {"prompt": "Hi", "chosen": "What?", "rejected": "Hello"}
    rows = [{**pair, "annotator": "ann"}, {**swapped, "annotator": "bob"}]
    import_labels(other, jsonl(tmp_path / "pairs.jsonl", rows))
    assert count(other, item) == 1
    ann, bob = labels_of(other, tmp_path / "out.jsonl")
    assert ann.completions == bob.completions == ["Hello", "What?"]
    assert (ann.annotator, ann.tiers, bob.annotator, bob.tiers) == ("ann", [[0], [1]], "bob", [[1], [0]])


def test_reasoning_at_the_beginning_of_an_imported_answer_is_kept_apart_and_kept(
    other: LabelConfig, tmp_path: Path, jsonl: Jsonl
) -> None:
    pair = {"prompt": "Hi", "chosen": "<think>\nA greeting.\n</think>\n\nHello", "rejected": "What? <think>"}
    import_labels(other, jsonl(tmp_path / "pairs.jsonl", [pair]))
    (row,) = labels_of(other, tmp_path / "out.jsonl")
    assert dict(zip(row.completions, row.reasonings or [], strict=True)) == {
        "Hello": "<think>\nA greeting.\n</think>\n\n",
        "What? <think>": "",
    }


def test_an_imported_answer_that_only_begins_with_a_tag_is_an_answer(
    other: LabelConfig, tmp_path: Path, jsonl: Jsonl
) -> None:
    pair = {"prompt": "Which tag?", "chosen": "<reasoning> opens a block.", "rejected": "<think>a one"}
    assert "1 labels imported" in import_labels(other, jsonl(tmp_path / "pairs.jsonl", [pair]))
    (row,) = labels_of(other, tmp_path / "out.jsonl")
    assert sorted(row.completions) == ["<reasoning> opens a block.", "<think>a one"] and not any(row.reasonings or [])


def test_a_corrected_file_replaces_what_it_said_before(other: LabelConfig, tmp_path: Path, jsonl: Jsonl) -> None:
    def rows(*chosen: str) -> list[Any]:
        return [{"prompt": "Hi", "chosen": c, "rejected": "B" if c == "A" else "A"} for c in chosen]

    import_labels(other, jsonl(tmp_path / "one.jsonl", rows("A", "A", "B")))
    text = import_labels(other, jsonl(tmp_path / "two.jsonl", rows("A", "B", "B", "A")))
    assert "2 labels imported, 1 of them in place of earlier labels by the same annotator; 2 were in" in text
    assert [row.tiers[0] for row in labels_of(other, tmp_path / "out.jsonl")] == [[0], [1], [1], [0]]
    assert "0 labels imported" in import_labels(other, tmp_path / "two.jsonl")
    assert count(other, event) == 5, "events are added, none is changed"


BROKEN = {
    "not JSON": ('{"prompt": ', "not JSON"),
    "no answer": ({"prompt": "Hi", "chosen": "A"}, "fits no known format"),
    "NaN": ('{"prompt": "Hi", "chosen": "A", "rejected": "B", "strength": NaN}', "strength: NaN is no JSON number"),
    "half a surrogate pair": (
        '{"prompt": "Hi \\ud83d", "chosen": "A", "rejected": "B"}',
        "prompt: not Unicode text (half of a surrogate pair, '\\ud83d')",
    ),
    "no finite number": (
        '{"prompt": "Hi", "chosen": "A", "rejected": "B", "sampler": {"temperature": 1e999}}',
        "sampler.temperature: 1e999 is no finite number",
    ),
    "an integer of thousands of digits": (
        '{"prompt": "Hi", "chosen": "A", "rejected": "B", "seed": ' + "9" * 5000 + "}",
        "seed: 99999999999999999... has 5000 digits, more than a number may have",
    ),
    "NUL": ({"prompt": "Hi", "chosen": "A\0", "rejected": "B"}, "chosen: holds the character NUL"),
    "NUL in a name": (
        {"prompt": "Hi", "chosen": "A", "rejected": "B", "meta": {"a\0": 1}},
        "meta: holds the character NUL",
    ),
    "NUL in an annotator": (
        {"prompt": "Hi", "chosen": "A", "rejected": "B", "annotator": "a\0b"},
        "annotator: holds the character NUL",
    ),
    "a key twice": (
        '{"prompt": "Hi", "chosen": "A", "rejected": "B", "chosen": "C"}',
        'the key "chosen" stands twice in one object; take one of them out',
    ),
    "a key twice, deep": (
        '{"prompt": [{"role": "user", "content": "Hi", "content": "Ho"}], "chosen": "A", "rejected": "B"}',
        'prompt.0: the key "content" stands twice in one object',
    ),
    "deep, and yet read by Python": (
        {"prompt": "Hi", "chosen": "A", "rejected": "B", "meta": json.loads("[" * 500 + "]" * 500)},
        "meta: nested too deeply",
    ),
    "an empty tier": (
        {"prompt": "Hi", "completions": ["A", "B"], "tiers": [[], [0, 1]]},
        "prompt, completions, tiers: [[], ",
    ),
    "an annotator that is none": (
        {"prompt": "Hi", "chosen": "A", "rejected": "B", "annotator": ["a"]},
        "annotator: expected",
    ),
    "an annotator of a megabyte": (
        {"prompt": "Hi", "chosen": "A", "rejected": "B", "annotator": "a" * 10**6},
        "annotator: ",
    ),
    "too deep": ("[" * 200_000, "nested too deeply"),
    "wrong type": ({"prompt": "Hi", "completions": ["A", 1], "tiers": [[0], [1]]}, "completions.1: Input should be"),
}


@pytest.mark.parametrize(("row", "problem"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_row_is_named_and_nothing_changes(
    other: LabelConfig, tmp_path: Path, jsonl: Jsonl, row: Any, problem: str
) -> None:
    good = {"prompt": "Hi", "chosen": "A", "rejected": "B"}
    path = jsonl(tmp_path / "rows.jsonl", [good, good, row])
    with pytest.raises(DataError) as error:
        import_labels(other, path)
    assert str(error.value).startswith(f"{path}:3: {problem}")
    assert len(str(error.value)) < 4000
    assert not Path(str(sa.make_url(other.store_url).database)).exists(), "not even a store was made"


MOMENTS = [
    "2026-11-22T00:00:00Z",
    "2026-11-22",
    "2026-11-22 01:00:00+01:00",
    "20261122T000000.000000Z",
    "2026-11-22T00:00",
]


def test_labels_of_any_moment_are_stored_in_one_form_and_counted(
    campaign: Any, store_url: str, tmp_path: Path, jsonl: Jsonl
) -> None:
    labelled(config := campaign.label(), GRADED)
    [row, *_] = [row.model_dump(mode="json") for row in labels_of(config, tmp_path / "out.jsonl")]
    rows = [{**row, "label_id": f"label-{n}", "created_utc": moment} for n, moment in enumerate(MOMENTS)]
    elsewhere = campaign.label(store=store_url)
    import_labels(elsewhere, jsonl(tmp_path / "moments.jsonl", rows))
    assert {one.created_utc for one in labels_of(elsewhere, tmp_path / "again.jsonl")} == {
        "2026-11-22T00:00:00.000+00:00"
    }
    assert "5" in stats(elsewhere)
    with pytest.raises(DataError, match=r"bad\.jsonl:1: provenance\.created_utc: expected a moment such as 2026-"):
        import_labels(elsewhere, jsonl(tmp_path / "bad.jsonl", [{**row, "label_id": "b", "created_utc": "yesterday"}]))


def test_annotators_are_text_however_a_file_writes_them(other: LabelConfig, tmp_path: Path, jsonl: Jsonl) -> None:
    pair = {"prompt": "Hi", "chosen": "A", "rejected": "B"}
    names = [0, 1, 2.0, "", None, "ann"]
    import_labels(other, jsonl(tmp_path / "pairs.jsonl", [{**pair, "annotator": name} for name in names]))
    stored = [row.annotator for row in labels_of(other, tmp_path / "out.jsonl")]
    assert stored == ["0", "1", "2", "unknown", "unknown", "ann"]


def test_bad_rows_are_left_out_counted_and_kept_where_that_is_asked(
    campaign: Any, tmp_path: Path, jsonl: Jsonl
) -> None:
    config = campaign.label(store=f"sqlite:///{tmp_path / 'other.sqlite'}")
    good = {"prompt": "Hi", "chosen": "A", "rejected": "B"}
    bad = [{"chosen": HH_SAID, "rejected": HH_ELSE}, {**good, "images": ["x.png"]}, "{", {**good, "images": ["y.png"]}]
    path = jsonl(tmp_path / "rows.jsonl", [good, *bad])
    with pytest.raises(DataError, match=r"leave them out with on_bad_rows: drop"):
        import_labels(config, path)
    text = import_labels(config, path, "drop")
    assert "1 labels imported" in text and "2 bad row: images" in text and "1 bad row: not JSON" in text
    [aside] = (config.run_dir / "left_out").iterdir()
    kept = [json.loads(line) for line in aside.read_text().splitlines()]
    assert [row["where"] for row in kept] == [f"{path}:{n}" for n in (2, 3, 4, 5)]
    assert kept[0]["row"] == bad[0] and kept[2]["row"] == "{" and kept[1]["problem"].startswith("images: holds")
    assert "0 labels imported" in import_labels(config.model_copy(update={"on_bad_rows": "drop"}), path)
    with pytest.raises(DataError, match="4 problems"):
        import_labels(config, jsonl(tmp_path / "none.jsonl", bad), "drop")
    marked = jsonl(tmp_path / "marked.jsonl", [{**good, "prompt": "Ho", "spam": True}])
    with pytest.raises(DataError, match=r"spam: holds true.*ignore_columns"):
        import_labels(config, marked)
    assert "1 labels imported" in import_labels(config, marked, ignore_columns=["spam"])


def test_the_command_and_the_stage_leave_bad_rows_out_alike(
    campaign: Any, tmp_path: Path, jsonl: Jsonl, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {"prompt": "Hi", "chosen": "A", "rejected": "B", "source": 7}
    path = jsonl(tmp_path / "rows.jsonl", [good, {**good, "images": ["x.png"]}])
    folder = run(campaign.label(source="import", path=path, on_bad_rows="drop"))
    [made] = json.loads((folder / "manifest.json").read_text())["inputs"]
    assert made["dropped"] == {"bad row: images: what Trueup cannot give to a model": 1}
    assert made["columns_not_read"] == {"source": 1}
    assert json.loads((folder / "left_out.jsonl").read_text())["where"] == f"{path}:2"

    file = tmp_path / "campaign.yaml"
    stages = "sft: {data: [starter]}\nsample: {prompts: starter}\nlabel: {source: simulated}\n"
    file.write_text(f"name: x\nrun_dir: {tmp_path}/other\n{stages}")
    assert cli.main(["labels", "import", str(file), str(path)]) == 2
    assert f"{path}:2: images: holds" in capsys.readouterr().err
    assert cli.main(["labels", "import", str(file), str(path), "--on-bad-rows", "drop"]) == 0
    said = capsys.readouterr().out
    assert "1 labels imported" in said and "columns not read: source (1)" in said
    [aside] = (tmp_path / "other" / "left_out").iterdir()
    assert f"the rows left out are in {aside}" in said


def test_the_rows_left_out_of_each_file_are_kept_whatever_the_files_are_called(
    campaign: Any, tmp_path: Path, jsonl: Jsonl
) -> None:
    config = campaign.label(store=f"sqlite:///{tmp_path / 'other.sqlite'}")
    good = {"prompt": "Hi", "chosen": "A", "rejected": "B"}
    files = [tmp_path / name for name in ("a/x.jsonl", "b/x.jsonl", "a/x.ndjson")]
    for n, file in enumerate(files):
        file.parent.mkdir(exist_ok=True)
        jsonl(file, [{**good, "prompt": f"Hi {n}"}, f"{n}{{"])
        for _ in range(2):  # again, and the file is written again under its own name
            import_labels(config, file, "drop")
    kept = [json.loads(path.read_text()) for path in (config.run_dir / "left_out").iterdir()]
    assert sorted((row["where"], row["row"]) for row in kept) == sorted(
        (f"{file}:2", f"{n}{{") for n, file in enumerate(files)
    )


HH_SAID = "\n\nHuman: Hi\n\nAssistant: Hm.\n\nHuman: And?\n\nAssistant: A"
HH_ELSE = "\n\nHuman: Hi\n\nAssistant: Hm\n\nHuman: And?\n\nAssistant: B"
SECRET = "The secret text of a row"


def test_a_full_disk_is_one_sentence_without_the_texts_and_the_import_goes_on_when_there_is_room(
    other: LabelConfig, tmp_path: Path, jsonl: Jsonl
) -> None:
    rows = [{"prompt": f"{SECRET} {n} {'x' * 500}", "chosen": "A", "rejected": "B"} for n in range(1500)]
    path = jsonl(tmp_path / "rows.jsonl", rows)
    Store(other.store_url).close()

    def small(connection: Any, _record: Any) -> None:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count={max(pages, 400)}")

    sa.event.listen(sa.Engine, "connect", small)
    try:
        with pytest.raises(DataError) as error:
            import_labels(other, path)
    finally:
        sa.event.remove(sa.Engine, "connect", small)
    problem = str(error.value)
    assert "is full" in problem and "the same command continues" in problem
    assert SECRET not in problem and "\n" not in problem and len(problem) < 600
    before = count(other, event)
    assert 0 < before < 1500 and f"{before} labels of" in problem
    assert f"{1500 - before} labels imported; {before} were in the store already" in import_labels(other, path)
    assert count(other, event) == count(other, item) == 1500


@pytest.mark.parametrize("store_url", ["postgresql"], indirect=True)
def test_a_full_disk_on_postgresql_is_one_sentence_without_the_texts(
    campaign: Any, store_url: str, tmp_path: Path, jsonl: Jsonl
) -> None:
    config = campaign.label(store=store_url)
    Store(store_url).close()
    engine = sa.create_engine(store_url)
    with engine.begin() as db:  # the server's own error, with the row in its detail
        db.exec_driver_sql(
            "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION "
            "'could not extend file: No space left on device' USING ERRCODE = '53100', "
            "DETAIL = NEW.prompt::text; END $$"
        )
        db.exec_driver_sql("CREATE TRIGGER full_disk BEFORE INSERT ON item FOR EACH ROW EXECUTE FUNCTION full_disk()")
    engine.dispose()
    with pytest.raises(DataError) as error:
        import_labels(config, jsonl(tmp_path / "rows.jsonl", [{"prompt": SECRET, "chosen": "A", "rejected": "B"}]))
    assert "is full" in str(error.value) and SECRET not in str(error.value)
    assert "\n" not in str(error.value)


def test_people_write_between_the_parts_of_a_long_import(other: LabelConfig, tmp_path: Path, jsonl: Jsonl) -> None:
    path = jsonl(tmp_path / "rows.jsonl", [{"prompt": f"Q{n}", "chosen": "A", "rejected": "B"} for n in range(3000)])
    store = Store(other.store_url)
    waits: list[float] = []
    done = threading.Event()

    def press() -> None:
        while not done.is_set():
            started = time.monotonic()
            store.set_note("pressed", str(len(waits)))
            waits.append(time.monotonic() - started)
            time.sleep(0.02)

    thread = threading.Thread(target=press)
    thread.start()
    try:
        started = time.monotonic()
        assert "3000 labels imported" in import_labels(other, path)
        took = time.monotonic() - started
    finally:
        done.set()
        thread.join()
        store.close()
    assert len(waits) >= 5 and max(waits) < took / 2, "nobody waits for the whole of it"


def test_a_label_id_that_says_otherwise_is_refused_with_all_that_came_with_it(
    campaign: Any, tmp_path: Path, jsonl: Jsonl
) -> None:
    config = campaign.label()
    labelled(config, GRADED)
    rows = [row.model_dump() for row in labels_of(config, tmp_path / "out.jsonl")]
    new = {"prompt": "Hi", "chosen": "A", "rejected": "B"}
    other_way = jsonl(tmp_path / "edited.jsonl", [new, {**rows[0], "tiers": rows[0]["tiers"][::-1]}])
    before = count(config, event), count(config, item)
    with pytest.raises(DataError, match=r"edited\.jsonl:2: the store has a label .* with another content"):
        import_labels(config, other_way)
    twice = jsonl(tmp_path / "twice.jsonl", [rows[1], {**rows[1], "annotator": "annotator-000000"}])
    with pytest.raises(DataError, match=r"twice\.jsonl:2: has the label_id of .*twice\.jsonl:1 and says otherwise"):
        import_labels(config, twice)
    assert (count(config, event), count(config, item)) == before


def test_what_a_file_holds_and_the_store_does_not_take_is_counted(
    other: LabelConfig, tmp_path: Path, jsonl: Jsonl
) -> None:
    alone = {"message_tree_id": "1", "prompt": node("prompter", "Why?", node("assistant", "Yes", rank=0))}
    deleted = {**node("assistant", "No", rank=1), "deleted": True}
    two = node("prompter", "Why?", node("assistant", "Yes", rank=0), node("assistant", "Well", rank=1), deleted)
    path = jsonl(tmp_path / "trees.jsonl", [alone, {"message_tree_id": "2", "prompt": two}])
    text = import_labels(other, path)
    assert "1 labels imported" in text
    assert text.endswith("dropped: 1 deleted or unreviewed message, 1 tree without ranked answers")
    with pytest.raises(DataError, match=r"no preference in it can be used \(dropped: 1 tree without ranked answers\)"):
        import_labels(other, jsonl(tmp_path / "alone.jsonl", [alone]))


def test_the_label_stage_imports_every_verdict_and_trains_on_those_that_teach(
    campaign: Any, public: Path, tmp_path: Path
) -> None:
    file = public / "pandalm" / "pairs.json"
    config = campaign.label(source="import", path=file)
    folder = run(config)
    assert len(read_rows(folder / "rankings.jsonl", Ranking)) == 21
    assert len(read_rows(folder / "preferences.jsonl", Preference)) == 14, "two differ in their outer white space"
    report = json.loads((folder / "report.json").read_text())
    assert report["dropped"] == {"identical": 0, "empty preferred answer": 2, "ties with an empty answer": 1}
    assert "0 labels imported; 21 were in the store already" in import_labels(config, file)


# ---- Out --------------------------------------------------------------------------------------------------------

EVERY_ROW = {"label_id", "annotator", "strength", "seconds", "guideline_sha256", "source", "selection", "propensity"}


def test_every_exported_pair_says_who_said_it_when_and_of_what(campaign: Any, tmp_path: Path, secret: str) -> None:
    config = campaign.label()
    labelled(config, GRADED)
    text = export_labels(config, tmp_path / "new" / "pairs.jsonl")
    assert text.endswith(
        "3 pairs of 5 labels (5 human) of 1 annotators; 2 are ties and give none; recorded tokens of 10 of 10 answers "
        "are left out: this run has no tokenizer here; left out: 1 skip"
    )
    rows = read_rows(tmp_path / "new" / "pairs.jsonl", Preference)
    whole = {row.label_id: row for row in labels_of(config, tmp_path / "whole.jsonl")}
    for row in rows:
        label = whole[row.label_id]
        assert row.model_dump(include=EVERY_ROW) == label.model_dump(include=EVERY_ROW)
        assert row.guideline_sha256 and row.annotator == "annotator-a1b2c3" and row.selection == "random"
        assert row.sampler == {"policy_sha256": secret, "temperature": 0.987654, "seed": 0}
        first = label.completions[(label.display_order or [])[0]]
        assert {"chosen": row.chosen, "rejected": row.rejected}[row.display_first or ""][0].content == first
    assert [row.strength for row in rows] == [3, 1, 2]


def test_answers_to_hidden_checks_are_no_preferences(campaign: Any, tmp_path: Path, jsonl: Jsonl) -> None:
    known = jsonl(
        tmp_path / "gold.jsonl", [{"prompt": f"{n}+1?", "chosen": f"{n + 1}", "rejected": "0"} for n in range(9)]
    )
    config = campaign.label(gold=known, gold_share=0.5, repeat_share=0.0, pairs_per_prompt=3)
    store = Store(config.store_url)
    prepare(config, store)
    service = LabelService(store, Settings.of(config))
    while tasks := service.tasks("ann"):
        service.label("ann", Judgement(str(uuid.uuid4()), tasks[0].token, "a"))
    store.close()
    text = export_labels(config, tmp_path / "pairs.jsonl")
    rows = read_rows(tmp_path / "pairs.jsonl", Preference)
    assert len(rows) == 18 and not any("+1?" in row.prompt[0].content for row in rows)
    assert text.endswith(f"left out: {count(config, event) - 18} gold label")


def test_a_datasets_folder_loads_with_the_same_rows(campaign: Any, tmp_path: Path) -> None:
    from datasets import load_from_disk

    config = campaign.label()
    labelled(config, GRADED)
    for form in ("pairs", "whole"):
        export_labels(config, tmp_path / f"{form}.jsonl", "jsonl", form)
        export_labels(config, tmp_path / form, "datasets", form)
        splits = load_from_disk(str(tmp_path / form))
        assert set(splits) <= {"train", "heldout"} and all(
            row["split"] == name for name, split in splits.items() for row in split
        )
        rows = [row for split in splits.values() for row in split]
        for row in rows:
            row |= {key: json.loads(row[key]) for key in ("sampler", "criteria") if key in row}
        written = [json.loads(line) for line in (tmp_path / f"{form}.jsonl").read_text().splitlines()]
        assert sorted(rows, key=lambda row: row["label_id"]) == sorted(written, key=lambda row: row["label_id"])
        assert splits["train"].features["seconds"].dtype == "float64"
        assert splits["train"].features["category"].dtype == "string"


def test_nothing_is_written_over_and_nothing_half_made_stays(campaign: Any, tmp_path: Path) -> None:
    config = campaign.label()
    with pytest.raises(DataError, match="there is no label store yet"):
        export_labels(config, tmp_path / "out.jsonl")
    assert not Path(str(sa.make_url(config.store_url).database)).exists()
    labelled(config, [{"choice": "skip"}])
    with pytest.raises(DataError, match=r"holds no labels \(left out: 1 skip\)"):
        export_labels(config, tmp_path / "out.jsonl")
    labelled(config, [{"choice": "tie"}])
    with pytest.raises(DataError, match="all 1 labels are ties, which give no pairs; take --rankings whole"):
        export_labels(config, tmp_path / "out.jsonl")
    labelled(config, [{"choice": "a"}])
    (tmp_path / "mine.jsonl").write_text("mine")
    for form in ("jsonl", "datasets"):
        with pytest.raises(TrueupError, match=r"mine\.jsonl: already there"):
            export_labels(config, tmp_path / "mine.jsonl", form)
        with pytest.raises(TrueupError, match=r"mine\.jsonl/out: cannot be written \(File exists\)"):
            export_labels(config, tmp_path / "mine.jsonl" / "out", form)
    with pytest.raises(TrueupError, match=r"mine\.jsonl/out: cannot be written \(File exists\)"):
        backup(config.store_url, tmp_path / "mine.jsonl" / "out")
    assert (tmp_path / "mine.jsonl").read_text() == "mine"
    export_labels(config, tmp_path / "there" / "out.jsonl")
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["out.jsonl"]


# ---- Backup -----------------------------------------------------------------------------------------------------


def test_a_backup_made_while_people_label_is_one_moment_of_the_store(campaign: Any, tmp_path: Path) -> None:
    config = campaign.label(pairs_per_prompt=3)
    labelled(config, GRADED)
    store = Store(config.store_url)
    service = LabelService(store, Settings.of(config))
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set() and (tasks := service.tasks("bob")):
            service.label("bob", Judgement(str(uuid.uuid4()), tasks[0].token, "a"))
            service.undo("bob", str(uuid.uuid4()))

    person = threading.Thread(target=work)
    person.start()
    try:
        texts = [backup(config.store_url, tmp_path / "backups" / f"{n}.sqlite") for n in range(5)]
    finally:
        stop.set()
        person.join()
        store.close()
    assert sorted(path.name for path in (tmp_path / "backups").iterdir()) == [f"{n}.sqlite" for n in range(5)]
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "backups").iterdir()} == {0o600}
    for n, text in enumerate(texts):
        restored = campaign.label(store=f"sqlite:///{tmp_path / 'backups' / f'{n}.sqlite'}")
        assert f": {count(restored, event)} events, " in text and "quick_check ok" in text
        assert len(labels_of(restored, tmp_path / f"{n}.jsonl")) >= 5
    with pytest.raises(TrueupError, match=r"0\.sqlite: already there"):
        backup(config.store_url, tmp_path / "backups" / "0.sqlite")


def test_a_damaged_store_gives_no_backup(campaign: Any, tmp_path: Path) -> None:
    config = campaign.label(pairs_per_prompt=3)
    labelled(config, GRADED)
    path = Path(str(sa.make_url(config.store_url).database))
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        [[page]] = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'view'").fetchall()
    damaged = bytearray(path.read_bytes())
    damaged[(page - 1) * 4096 + 8 : page * 4096] = b"\xff" * (4096 - 8)
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=str(path)):
        backup(config.store_url, tmp_path / "backup.sqlite")
    assert not list(tmp_path.glob("backup*"))


def test_a_store_on_a_server_is_left_to_the_servers_own_tool(campaign: Any, tmp_path: Path) -> None:
    config = campaign.label(store="postgresql+psycopg://ann:geheim@db.example.org:5433/labels")
    with pytest.raises(TrueupError) as error:
        backup(config.store_url, tmp_path / "labels.dump")
    command = f"pg_dump --format=custom --file={tmp_path}/labels.dump 'postgresql://ann:***@db.example.org:5433/labels'"
    assert command in str(error.value) and "geheim" not in str(error.value)


# ---- Blindness --------------------------------------------------------------------------------------------------

CANARIES = {
    "policy": "runs/zebra-17/sft/model",
    "policy_sha256": "5f0c3b9d17aa42e6c1",
    "checkpoint": "checkpoint-48213",
    "model": "canary/finch-9b",
    "temperature": 0.7319426,
    "top_p": 0.9173155,
    "seed": 918273645,
    "nested": {"engine": "vllm 0.77.3-canary"},
}


@pytest.fixture
def marked(campaign: Any, answers_to: Any, tmp_path: Path) -> LabelConfig:
    """A campaign with a mark of its own in everything that says where an answer is from, and a label of a colleague."""
    rows = []
    for i in range(14):
        row = answers_to(f"How do I mend chair {i}?", [f"Glue leg {i} and wait a day.", f"Buy chair {i + 1}."])
        answers = [
            Candidate(text=c.text, token_ids=[40_000 + i, 51_111, 62_222 + n], finished=True, logp=-31.40271 - i - n)
            for n, c in enumerate(row.candidates)
        ]
        rows.append(row.model_copy(update={"sampler": CANARIES, "candidates": answers}))
    campaign.sampled(rows)
    practice = [{"prompt": "1+1?", "chosen": f"2{'.' * n}", "rejected": "3", "explanation": "Sum."} for n in range(2)]
    path = tmp_path / "practice.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in practice))
    config = campaign.label(labels_per_pair=2, criteria=["helpful"], rationale_share=0.5, guideline="# Be fair\n\nAnd.")
    labelled(config, [{"choice": "a", "note": "Why."}] * 3, who="annotator-9d8c7b")
    return config.model_copy(update={"qualification": path})


def test_a_whole_campaign_of_labelling_tells_nothing_of_where_answers_come_from(marked: LabelConfig) -> None:
    before = count(marked, event), count(marked, item)
    text, clean = blindcheck(marked)
    assert clean, text
    assert "0 hits" in text
    assert int(text.split()[0]) >= 16, "every pair and the practice items, and again after an undo"
    assert (count(marked, event), count(marked, item)) == before, "the campaign itself was only read"


LEAKS = {
    "sampler policy_sha256": CANARIES["policy_sha256"],
    "sampler temperature": "'temperature': 0.7319426",
    "sampler nested.engine": "vllm 0.77.3-canary",
    "token ids": "[40003,51111,62222]",
    "log-probability": '"x": -34.40271',
    "sampler policy": "/files?at=runs%2Fzebra-17%2Fsft%2Fmodel",
    "another annotator": "annotator-9d8c7b agrees",
}


def test_every_leak_is_found_and_named_whatever_it_is_and_wherever(marked: LabelConfig) -> None:
    from fastapi import Response as Sent

    from ui.app import label_app

    leaks = list(LEAKS.values())

    def leaking(config: LabelConfig) -> Any:
        app = label_app(config)

        @app.middleware("http")
        async def leak(request: Any, call_next: Any) -> Any:
            if not request.url.path.startswith("/static/leak"):
                return await call_next(request)
            text = leaks[int(request.url.path.removeprefix("/static/leak"))]
            return Sent(text, media_type="application/json", headers={"x-model": str(CANARIES["model"])})

        for number in range(len(leaks)):
            app.add_api_route(f"/static/leak{number}", lambda: None)
        return app

    text, clean = blindcheck(marked, make_app=leaking)
    assert not clean
    for number, what in enumerate(LEAKS):
        assert f"GET /static/leak{number} body: {what}: " in text
        assert f"GET /static/leak{number} headers: sampler model: " in text


def answer_of(body: Any) -> Response:
    headers = [(b"content-type", b"application/json")]
    return Response("GET /api/v1/tasks", 200, headers, bytearray(json.dumps(body).encode()))


TASK = {"token": "t0", "prompt": "<p>Hi</p>", "answers": [{"html": "", "text": "I am finch-9b"}]}


def test_a_task_with_a_key_too_many_is_a_leak_whatever_its_value() -> None:
    task = {**TASK, "wants_rationale": False, "practice": False}
    report = Report([], [])
    report.check(answer_of({"tasks": [task], "progress": {"done": 1}}))
    assert not report.hits
    report.check(answer_of({"tasks": [{**task, "n": 3, "answers": [{"html": "", "text": "", "seed": 0}]}]}))
    assert [(hit.what, hit.excerpt) for hit in report.hits] == [
        ("a key that names provenance", "seed"),
        ("a task has more than its token and texts", "n"),
        ("an answer has more than its text", "seed"),
    ]


def test_an_answer_that_names_its_model_is_counted_and_the_name_is_still_looked_for_elsewhere() -> None:
    report = Report([Secret("finch-9b", "sampler model")], ["I am finch-9b"])
    report.check(answer_of({"tasks": [TASK]}))
    assert not report.hits and report.named == {"sampler model": 1}
    report.check(answer_of({"tasks": [TASK], "made_by": "finch-9b"}))
    assert [hit.what for hit in report.hits] == ["sampler model"]


def test_a_word_is_looked_for_as_a_value_and_not_within_other_words() -> None:
    report = Report([Secret("embedded", "model.name")], [])
    report.check(Response("GET /label/assets/x.js", 200, [], bytearray(b"an embedded font")))
    report.check(answer_of({"tasks": [], "state": "done"}))
    assert not report.hits
    report.check(answer_of({"tasks": [], "by": "embedded"}))
    assert [(hit.what, hit.excerpt) for hit in report.hits] == [("model.name", "by: embedded")]


def test_an_order_on_the_screen_that_follows_the_store_is_a_leak() -> None:
    assert order_says(13, 26) is None and order_says(10, 10) is None, "ten of ten can be chance"
    assert order_says(26, 26) == "26 of 26 pairs were shown in the order of the store"
    assert order_says(0, 26) is not None and order_says(480, 1000) is None


@pytest.mark.browser
def test_a_real_browser_is_told_nothing_either(marked: LabelConfig, chromium: Any) -> None:
    with ThreadPoolExecutor(1) as thread:  # the fixture's Playwright has the loop of this one
        text, clean = thread.submit(blindcheck, marked, browser=True).result()
    assert clean, text
    assert "tasks labelled in Chromium" in text


def test_a_campaign_that_asks_nothing_is_no_clean_bill(campaign: Any, answers_to: Any) -> None:
    campaign.sampled([answers_to("Hi?", ["The same.", "The same."])])
    config = campaign.label()
    Store(config.store_url).close()
    with pytest.raises(TrueupError, match="nothing was labelled"):
        blindcheck(config)


def test_the_choice_of_rows_of_the_campaigns_file_concerns_no_further_file(
    campaign: Any, tmp_path: Path, jsonl: Jsonl
) -> None:
    rows = [{"prompt": f"Hi {n}", "chosen": "A", "rejected": "B", "language": "en" if n else "fr"} for n in range(3)]
    first, further = jsonl(tmp_path / "first.jsonl", rows), jsonl(tmp_path / "further.jsonl", rows[:1])
    keys = {"filter": {"language": "en"}, "max_rows": 1}
    config = campaign.label(source="import", path=first, store=f"sqlite:///{tmp_path / 'other.sqlite'}", **keys)
    assert "1 labels imported" in (said := import_labels(config, first)) and "concern" not in said
    said = import_labels(config, further)
    assert "1 labels imported" in said and "label.filter and label.max_rows concern label.path alone" in said

"""Every import format on hand-made rows: what becomes of them, what is dropped, and what is said of broken ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trueup.data import formats
from trueup.data.formats import Format, read_demonstrations, read_preferences, read_prompts, vocabulary
from trueup.data.pairs import pairs_of
from trueup.data.records import Dropped, Message, Ranking, write_rows
from trueup.errors import DataError
from trueup.files import sha256_file
from trueup.provenance.inputs import recorded, sha256_of, why_changed

DOCS = Path(__file__).parents[3] / "docs" / "formats.md"


def jsonl(folder: Path, *rows: Any) -> Path:
    path = folder / "rows.jsonl"
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return path


def said(messages: list[Message]) -> list[tuple[str, str]]:
    return [(message.role[0], message.content) for message in messages]


def msgs(*turns: str) -> list[dict[str, str]]:
    """`"u: hello"` -> a message of the user."""
    roles = {"u": "user", "a": "assistant", "s": "system"}
    return [{"role": roles[turn[0]], "content": turn[3:]} for turn in turns]


def share(*turns: str) -> list[dict[str, str]]:
    roles = {"u": "human", "a": "gpt", "s": "system"}
    return [{"from": roles[turn[0]], "value": turn[3:]} for turn in turns]


def node(role: str, text: str, *replies: Any, **columns: Any) -> dict[str, Any]:
    return {"message_id": f"id-{text}", "role": role, "text": text, "replies": list(replies), **columns}


def tree(*replies: Any, **columns: Any) -> dict[str, Any]:
    return {"message_tree_id": "t", "prompt": node("prompter", "Q", *replies, **columns)}


# ---- Demonstrations ---------------------------------------------------------------------------------------------

DEMONSTRATIONS = {
    "messages": (
        {"messages": msgs("s: Be kind.", "u: Hi", "a: Hello")},
        [("s", "Be kind."), ("u", "Hi"), ("a", "Hello")],
    ),
    "prompt and completion as text": ({"prompt": "Hi", "completion": "Hello"}, [("u", "Hi"), ("a", "Hello")]),
    "prompt and completion as messages": (
        {"prompt": msgs("u: Hi"), "completion": msgs("a: Hello")},
        [("u", "Hi"), ("a", "Hello")],
    ),
    "Alpaca": (
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        [("u", "Add.\n\n1 2"), ("a", "3")],
    ),
    "Alpaca without input": ({"instruction": "Sing.", "input": "", "output": "La"}, [("u", "Sing."), ("a", "La")]),
    "Alpaca with a system column": (
        {"system": "Be brief.", "instruction": "Sing.", "output": "La"},
        [("s", "Be brief."), ("u", "Sing."), ("a", "La")],
    ),
    "Dolly": (
        {"instruction": "Who?", "context": "Ann came.", "response": "Ann"},
        [("u", "Who?\n\nAnn came."), ("a", "Ann")],
    ),
    "ShareGPT": (
        {"conversations": share("u: Hi", "a: Hello", "u: Bye", "a: So long")},
        [("u", "Hi"), ("a", "Hello"), ("u", "Bye"), ("a", "So long")],
    ),
    "ShareGPT with role and content": ({"conversations": msgs("u: Hi", "a: Yo")}, [("u", "Hi"), ("a", "Yo")]),
    "ShareGPT with a system column": (
        {"system": "Be brief.", "conversations": share("u: Hi", "a: Yo")},
        [("s", "Be brief."), ("u", "Hi"), ("a", "Yo")],
    ),
    "GSM8K": (
        {"question": "1+1?", "answer": "It is <<1+1=2>>2.\n#### 2"},
        [("u", "1+1?"), ("a", "It is <<1+1=2>>2.\n#### 2")],
    ),
    "OASST": (
        tree(node("assistant", "worse", rank=1), node("assistant", "better", rank=0)),
        [("u", "Q"), ("a", "better")],
    ),
}


@pytest.mark.parametrize(("row", "expected"), DEMONSTRATIONS.values(), ids=DEMONSTRATIONS.keys())
def test_a_row_of_each_format_becomes_its_conversation_and_its_prompt(tmp_path: Path, row: Any, expected: Any) -> None:
    path = jsonl(tmp_path, row)
    [demonstration] = read_demonstrations(path, dropped := Dropped())
    assert said(demonstration.messages) == expected
    [prompt] = read_prompts(path, dropped)
    assert said(prompt.prompt) == expected[:-1], "the prompt is the conversation up to the last user turn"
    assert not dropped.counts


def test_a_json_list_reads_as_the_same_rows_one_a_line(tmp_path: Path) -> None:
    rows = [{"prompt": "1", "completion": "one"}, {"prompt": "2", "completion": "two"}]
    (tmp_path / "rows.json").write_text(json.dumps(rows, indent=1))
    assert read_demonstrations(tmp_path / "rows.json", Dropped()) == read_demonstrations(
        jsonl(tmp_path, *rows), Dropped()
    )


def test_a_file_may_mix_formats_and_have_blank_lines_a_bom_and_line_separators_in_text(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"prompt": "a\u2028b", "completion": "one"}, "", {"question": "q", "answer": "#### 1"})
    path.write_text("\ufeff" + path.read_text().replace("\\u2028", "\u2028"), encoding="utf-8")
    first, second = read_demonstrations(path, Dropped())
    assert first.messages[0].content == "a\u2028b"
    assert second.messages[0].content == "q"


def test_the_category_column_is_kept(tmp_path: Path) -> None:
    row = {"instruction": "Who?", "context": "", "response": "Ann", "category": "open_qa"}
    assert read_demonstrations(jsonl(tmp_path, row), Dropped())[0].category == "open_qa"
    assert read_prompts(jsonl(tmp_path, row), Dropped())[0].category == "open_qa"


def test_self_instruct_gives_a_demonstration_for_each_instance(tmp_path: Path) -> None:
    instances = [{"input": "1 2", "output": "3"}, {"input": "", "output": "which?"}]
    found = read_demonstrations(jsonl(tmp_path, {"instruction": "Add.", "instances": instances}), Dropped())
    assert [said(demonstration.messages) for demonstration in found] == [
        [("u", "Add.\n\n1 2"), ("a", "3")],
        [("u", "Add."), ("a", "which?")],
    ]


def test_an_oasst_tree_gives_the_best_answer_of_each_turn_and_a_conversation_for_each_follow_up(tmp_path: Path) -> None:
    good = node(
        "assistant",
        "good",
        node("prompter", "why", node("assistant", "because", rank=0), node("assistant", "dunno", rank=1)),
        node("prompter", "how", node("assistant", "thus")),
        node("prompter", "unanswered"),
        rank=0,
    )
    bad = node("assistant", "bad", node("prompter", "what", node("assistant", "sorry")), rank=1)
    unranked = node("assistant", "unranked")
    found = read_demonstrations(jsonl(tmp_path, tree(unranked, bad, good)), dropped := Dropped())
    assert [[message.content for message in demonstration.messages] for demonstration in found] == [
        ["Q", "good", "why", "because"],
        ["Q", "good", "how", "thus"],
    ]
    assert not dropped.counts


def test_deleted_and_unreviewed_oasst_messages_are_left_out_with_all_that_follows_them(tmp_path: Path) -> None:
    deleted = node("assistant", "deleted", node("prompter", "x", node("assistant", "y")), rank=0, deleted=True)
    pending = node("assistant", "pending", rank=1, review_result=None)
    path = jsonl(tmp_path, tree(deleted, pending, node("assistant", "kept", rank=2, review_result=True)), tree(pending))
    [found] = read_demonstrations(path, dropped := Dropped())
    assert [message.content for message in found.messages] == ["Q", "kept"]
    assert dropped.counts == {"deleted or unreviewed message": 3, "tree without an answer": 1}


def instruction_induction(folder: Path, annotations: list[str] | None) -> Path:
    path = folder / "raw" / "induce" / "sum.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"metadata": {}, "examples": {"1": {"input": "1 2", "output": "3", "x": 1}}}))
    if annotations is not None:
        (folder / "annotations").mkdir()
        (folder / "annotations" / "sum.json").write_text(json.dumps({"annotations": annotations}))
    return path


def test_instruction_induction_takes_its_instruction_from_the_annotations_above_it(tmp_path: Path) -> None:
    path = instruction_induction(tmp_path, ["sum the numbers", "Add the two numbers. ", "Sum them."])
    [found] = read_demonstrations(path, Dropped())
    assert said(found.messages) == [("u", "Add the two numbers.\n\n1 2"), ("a", "3")]
    assert found.category == "sum", "a task is named by its file, so that whole tasks can be left out of training"


def test_instruction_induction_without_annotations_says_what_is_missing(tmp_path: Path) -> None:
    path = instruction_induction(tmp_path, None)
    with pytest.raises(DataError) as error:
        read_demonstrations(path, Dropped())
    assert str(error.value).split("\n")[0] == (
        f"{path}: these examples need an instruction, and no folder above the file has annotations/sum.json"
    )


def test_the_file_that_an_instruction_stands_in_is_an_input_beside_its_examples(tmp_path: Path) -> None:
    path = instruction_induction(tmp_path, ["Add the two numbers."])
    before, of_folder = recorded(path), recorded(path.parent)
    assert before and set(before) == {"sum.json", "../../annotations/sum.json"}
    assert of_folder and set(of_folder) == set(before)
    sha256 = sha256_of(path, before)
    assert why_changed(path, sha256, before) is None
    (tmp_path / "annotations" / "sum.json").write_text(json.dumps({"annotations": ["Take their sum."]}))
    assert why_changed(path, sha256, before) == f"{path}: ../../annotations/sum.json has changed"
    assert sha256_of(path) != sha256, "so a stage that read it is stale"
    alone = tmp_path / "alone.json"
    alone.write_text("[]")
    assert recorded(alone) is None and sha256_of(alone) == sha256_file(alone)


def test_instruction_induction_with_broken_annotations_names_their_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"annotations/sum\.json: annotations: List should have at least 1 item"):
        read_demonstrations(instruction_induction(tmp_path, []), Dropped())


def test_duplicates_and_empty_reference_outputs_are_dropped_and_counted(tmp_path: Path) -> None:
    row = {"instruction": "Sing.", "input": "", "output": "La"}
    path = jsonl(tmp_path, row, row, {**row, "output": " \n"}, {"messages": msgs("u: Hi", "a: ")})
    assert len(read_demonstrations(path, dropped := Dropped())) == 1
    assert dropped.counts == {"duplicate": 1, "empty reference output": 2}


# ---- Prompts ----------------------------------------------------------------------------------------------------

PROMPTS = {
    "text": ({"prompt": "Hi"}, [("u", "Hi")]),
    "messages": ({"prompt": msgs("s: Be kind.", "u: Hi")}, [("s", "Be kind."), ("u", "Hi")]),
    "HH": (
        {"prompt": "\n\nHuman: Hi\n\nAssistant: Yo\n\nHuman: Sup\n\nAssistant:"},
        [("u", "Hi"), ("a", "Yo"), ("u", "Sup")],
    ),
    "messages that end with the user": (
        {"messages": msgs("u: Hi", "a: Yo", "u: Sup")},
        [("u", "Hi"), ("a", "Yo"), ("u", "Sup")],
    ),
    "MT-Bench": ({"question_id": 81, "category": "writing", "turns": ["First", "Second"]}, [("u", "First")]),
    "IFEval": (
        {"key": 1, "prompt": "No commas", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
        [("u", "No commas")],
    ),
    "Trueup's candidates": ({"prompt_id": "x", "prompt": msgs("u: Hi"), "candidates": []}, [("u", "Hi")]),
}


@pytest.mark.parametrize(("row", "expected"), PROMPTS.values(), ids=PROMPTS.keys())
def test_a_row_of_each_format_becomes_its_prompt(tmp_path: Path, row: Any, expected: Any) -> None:
    [prompt] = read_prompts(jsonl(tmp_path, row), Dropped())
    assert said(prompt.prompt) == expected
    assert prompt.category == row.get("category")


def test_prompts_that_look_the_same_are_one_prompt(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"prompt": "Hi there"}, {"prompt": "Hi\u200b there \n"}, {"prompt": "Hi\n    there"})
    assert len(read_prompts(path, dropped := Dropped())) == 2
    assert dropped.counts == {"duplicate": 1}


def test_a_prompt_is_kept_where_its_reference_output_is_empty(tmp_path: Path) -> None:
    [prompt] = read_prompts(jsonl(tmp_path, {"instruction": "Sing.", "output": ""}), dropped := Dropped())
    assert said(prompt.prompt) == [("u", "Sing.")]
    assert not dropped.counts


# ---- Preferences ------------------------------------------------------------------------------------------------

HH = "\n\nHuman: Hi\n\nAssistant: Yo\n\nHuman: Sup\n\nAssistant:"
LONG = [("u", "Hi"), ("a", "Yo"), ("u", "Sup")]
A_WINS, B_WINS, TIE = [[0], [1]], [[1], [0]], [[0, 1]]

PREFERENCES = {
    "TRL conversational": (
        {"prompt": msgs("u: Hi"), "chosen": msgs("a: A"), "rejected": msgs("a: B")},
        [("u", "Hi")],
        A_WINS,
    ),
    "TRL standard": ({"prompt": "Hi", "chosen": "A", "rejected": "B"}, [("u", "Hi")], A_WINS),
    "text prompt before whole conversations": (
        {"prompt": "Hi", "chosen": msgs("u: Hi", "a: A"), "rejected": msgs("u: Hi", "a: B")},
        [("u", "Hi")],
        A_WINS,
    ),
    "prompt within the conversations": (
        {"chosen": msgs("u: Hi", "a: Yo", "u: Sup", "a: A"), "rejected": msgs("u: Hi", "a: Yo", "u: Sup", "a: B")},
        LONG,
        A_WINS,
    ),
    "HH": ({"chosen": f"{HH} A", "rejected": f"{HH} B"}, LONG, A_WINS),
    "HH with a prompt column": ({"prompt": HH, "chosen": "A", "rejected": "B"}, LONG, A_WINS),
    "ShareGPT": (
        {"conversations": share("u: Hi"), "chosen": share("a: A")[0], "rejected": share("a: B")[0]},
        [("u", "Hi")],
        A_WINS,
    ),
    "ShareGPT with a system column": (
        {"system": "Be.", "conversations": share("u: Hi"), "chosen": share("a: A")[0], "rejected": share("a: B")[0]},
        [("s", "Be."), ("u", "Hi")],
        A_WINS,
    ),
    "arena": ({"prompt": "Hi", "response_a": "A", "response_b": "B", "winner": "model_b"}, [("u", "Hi")], B_WINS),
    "arena tie": (
        {"prompt": "Hi", "response_a": "A", "response_b": "B", "winner": "tie (bothbad)"},
        [("u", "Hi")],
        TIE,
    ),
    "side by side": (
        {"prompt": "Hi", "completion_a": "A", "completion_b": "B", "preference": "A"},
        [("u", "Hi")],
        A_WINS,
    ),
    "a verdict of 0, and a later column": (
        {"prompt": "Hi", "response_0": "A", "response_1": "B", "preference": 0, "vote": 17},
        [("u", "Hi")],
        A_WINS,
    ),
    "ranks from 0, and scores": (
        {"prompt": "Hi", "responses": [{"text": "A", "rank": 1, "score": 1}, {"text": "B", "rank": 0, "score": 9}]},
        [("u", "Hi")],
        B_WINS,
    ),
    "Trueup's rankings": (
        {"prompt": msgs("u: Hi"), "completions": ["A", "B"], "tiers": [[1], [0]]},
        [("u", "Hi")],
        B_WINS,
    ),
}


@pytest.mark.parametrize(("row", "prompt", "tiers"), PREFERENCES.values(), ids=PREFERENCES.keys())
def test_a_row_of_each_format_becomes_its_ranking(tmp_path: Path, row: Any, prompt: Any, tiers: Any) -> None:
    [ranking] = read_preferences(jsonl(tmp_path, row), dropped := Dropped())
    assert said(ranking.prompt) == prompt
    assert (ranking.completions, ranking.tiers) == (["A", "B"], tiers)
    assert (ranking.annotator, ranking.category, ranking.strength) == ("unknown", None, None)
    assert not dropped.counts


@pytest.mark.parametrize("value", [True, False, None])
def test_a_ranking_of_somebody_else_keeps_that_both_answers_are_bad(tmp_path: Path, value: Any) -> None:
    tie = {"prompt": "Hi", "completions": ["A", "B"], "tiers": [[0, 1]], "both_bad": value}
    [ranking] = read_preferences(jsonl(tmp_path, tie), Dropped())
    assert ranking.both_bad is bool(value)


@pytest.mark.parametrize(("more", "reason"), [({"both_bad": "maybe"}, "true or false"), ({"tiers": [[0], [1]]}, "tie")])
def test_what_cannot_be_both_bad_is_refused(tmp_path: Path, more: dict[str, Any], reason: str) -> None:
    row = {"prompt": "Hi", "completions": ["A", "B"], "tiers": [[0, 1]], "both_bad": True, **more}
    with pytest.raises(DataError, match=rf"both_bad.*{reason}"):
        read_preferences(jsonl(tmp_path, row), Dropped())


def test_annotator_category_and_strength_are_kept_where_a_row_has_them(tmp_path: Path) -> None:
    pair = {"prompt": "Hi", "chosen": "A", "rejected": "B"}
    path = jsonl(tmp_path, {**pair, "annotator": "ann", "category": "chat", "strength": 3}, {**pair, "judge": "bob"})
    assert [(row.annotator, row.category, row.strength) for row in read_preferences(path, Dropped())] == [
        ("ann", "chat", 3),
        ("bob", None, None),
    ]


RANKING = Ranking(
    label_id="label-1",
    row_id="7",
    criteria={"honesty": [[1], [0, 2]]},
    prompt_id="p",
    prompt=[Message(role="user", content="Hi")],
    category="chat",
    split="train",
    completions=["B", "C", "A"],
    completion_token_ids=[[1, 2], None, [3]],
    finished=[True, False, True],
    reasonings=["<think>\nB?\n</think>\n\n", "<think>\nHm.\n</think>\n\n", ""],
    logps=[-1.5, None, -2.5],
    sampler={"policy_sha256": "abc", "seed": 3},
    tiers=[[2], [0], [1]],
    display_order=[1, 2, 0],
    strength=None,
    note="Because.",
    seconds=3.5,
    guideline_sha256="def",
    source="human",
    annotator="ann",
    created_utc="2026-11-22T00:00:00.000+00:00",
)


def test_what_trueup_wrote_reads_back_with_where_it_came_from(tmp_path: Path) -> None:
    write_rows(tmp_path / "rankings.jsonl", [RANKING])
    [found] = read_preferences(tmp_path / "rankings.jsonl", Dropped())
    shared = set(Ranking.model_fields) & set(found.model_dump())
    assert found.model_dump(include=shared) == RANKING.model_dump(include=shared)
    assert found.provenance is not None
    told = set(found.provenance.model_dump())
    assert found.provenance.model_dump() == RANKING.model_dump(include=told)


def test_pairs_that_trueup_made_of_a_ranking_become_that_ranking_again(tmp_path: Path) -> None:
    pairs = pairs_of(RANKING)
    write_rows(tmp_path / "pairs.jsonl", [*pairs, pairs[0]])
    [found] = read_preferences(tmp_path / "pairs.jsonl", dropped := Dropped())
    assert (found.completions, found.tiers) == (["A", "B", "C"], [[0], [1], [2]]), "in alphabetical order"
    assert found.display_order == [2, 0, 1]
    assert (found.completion_token_ids, found.finished) == ([[3], [1, 2], None], [True, True, False])
    assert found.logps == [-2.5, -1.5, None]
    assert found.provenance is not None and found.provenance.seconds == 3.5
    assert dropped.counts == {"label given twice": 1}
    heldout = [pair.model_copy(update={"split": "heldout"}) for pair in pairs]
    write_rows(tmp_path / "pairs.jsonl", heldout)
    demonstrations = read_demonstrations(tmp_path / "pairs.jsonl", Dropped())
    answers = {demonstration.messages[-1].content for demonstration in demonstrations}
    assert answers == {"A", "<think>\nB?\n</think>\n\nB"}, "with their reasoning; its split is another campaign's"


def test_a_file_of_somebody_else_may_use_our_column_names_for_other_things(tmp_path: Path) -> None:
    row = {"prompt": "Hi", "chosen": "A", "rejected": "B", "label_id": 7, "seconds": "long", "display_first": "left"}
    [found] = read_preferences(jsonl(tmp_path, row), Dropped())
    assert found.provenance is None and found.display_order is None


def test_a_row_of_ours_that_was_damaged_is_named(tmp_path: Path) -> None:
    whole = RANKING.model_dump(mode="json")
    pair = pairs_of(RANKING)[0].model_dump(mode="json")
    for row, problem in [
        ({**whole, "seconds": -1}, "provenance.seconds: Input should be greater than or equal to 0"),
        ({**whole, "display_order": [0, 0, 1]}, "display_order [0, 0, 1] is no order of 3 completions"),
        ({**whole, "finished": [True]}, "finished: expected one for each of 3 completions, found 1"),
        ({**pair, "display_first": "left"}, 'display_first: expected chosen, rejected or nothing, found "left"'),
        ({**pair, "chosen_rank": 2}, "chosen_rank, rejected_rank: expected a lower and a higher number, found "),
    ]:
        path = jsonl(tmp_path, row)
        with pytest.raises(DataError) as error:
            read_preferences(path, Dropped())
        assert (
            str(error.value)
            .split("\n")[0]
            .removeprefix(f"{path}:1: ")
            .removeprefix("prompt, completions, tiers: ")
            .startswith(problem)
        )


def test_pandalm_gives_each_annotators_verdict_and_keeps_ties(tmp_path: Path) -> None:
    verdicts = {"annotator1": 0, "annotator2": 1, "annotator3": 2}
    row = {"instruction": "Add.", "input": "1 2", "response1": "3", "response2": "4", **verdicts}
    found = read_preferences(jsonl(tmp_path, row), dropped := Dropped())
    assert [(ranking.annotator, ranking.tiers) for ranking in found] == [
        ("annotator1", TIE),
        ("annotator2", A_WINS),
        ("annotator3", B_WINS),
    ]
    assert all(said(ranking.prompt) == [("u", "Add.\n\n1 2")] for ranking in found)
    assert not dropped.counts


def finegrained(*verdicts: int) -> dict[str, Any]:
    answers = {f"prediction {i}": f"answer {i}" for i in (1, 2, 3, 4)}
    return {"question": "When?", "passages": [["Title", "One.", "Two."]], **answers, "preference": list(verdicts)}


def test_finegrained_qa_verdicts_that_make_an_order_become_one_ranking_of_four(tmp_path: Path) -> None:
    # Pairs (1,2)(1,3)(1,4)(2,3)(2,4)(3,4): 3 beats all; 1 and 4 tie; both beat 2.
    [ranking] = read_preferences(jsonl(tmp_path, finegrained(1, 2, 0, 2, 2, 1)), Dropped())
    assert ranking.tiers == [[2], [0, 3], [1]]
    assert ranking.completions == ["answer 1", "answer 2", "answer 3", "answer 4"]
    assert said(ranking.prompt) == [("u", "When?\n\nTitle\nOne.\nTwo.")]
    [all_tied] = read_preferences(jsonl(tmp_path, finegrained(0, 0, 0, 0, 0, 0)), Dropped())
    assert all_tied.tiers == [[0, 1, 2, 3]]


def test_finegrained_qa_verdicts_that_contradict_each_other_become_one_ranking_for_each_pair(tmp_path: Path) -> None:
    # 1 beats 2, 2 beats 3, 3 beats 1.
    found = read_preferences(jsonl(tmp_path, finegrained(1, 2, 1, 1, 1, 1)), Dropped())
    assert [(row.completions[0][-1] + row.completions[1][-1], row.tiers) for row in found] == [
        ("12", A_WINS),
        ("13", B_WINS),
        ("14", A_WINS),
        ("23", A_WINS),
        ("24", A_WINS),
        ("34", A_WINS),
    ]
    # Ties that do not carry over: 1 ties 2, 2 ties 3, yet 1 beats 3.
    assert len(read_preferences(jsonl(tmp_path, finegrained(0, 1, 1, 0, 1, 1)), Dropped())) == 6


def test_an_oasst_tree_gives_a_ranking_for_each_turn_with_two_ranked_answers(tmp_path: Path) -> None:
    second = node(
        "prompter", "Q2", node("assistant", "C", rank=0), node("assistant", "D", rank=0), node("assistant", "E")
    )
    path = jsonl(
        tmp_path,
        tree(node("assistant", "B", second, rank=1), node("assistant", "A", rank=0)),
        tree(node("assistant", "alone", rank=0)),
    )
    first, later = read_preferences(path, dropped := Dropped())
    assert (said(first.prompt), first.completions, first.tiers) == ([("u", "Q")], ["B", "A"], B_WINS)
    assert said(later.prompt) == [("u", "Q"), ("a", "B"), ("u", "Q2")], "answers to a worse answer are ranked too"
    assert (later.completions, later.tiers) == (["C", "D"], TIE)
    assert dropped.counts == {"tree without ranked answers": 1}


def test_everything_that_was_judged_stays_even_twice_or_of_empty_answers(tmp_path: Path) -> None:
    def pair(chosen: str, rejected: str) -> dict[str, str]:
        return {"prompt": "Hi", "chosen": chosen, "rejected": rejected}

    path = jsonl(tmp_path, pair("A", "B"), pair("A", "B"), pair("A", "A"), pair("", "B"), pair("A", ""))
    found = read_preferences(path, dropped := Dropped())
    assert [[row.completions[tier[0]] for tier in row.tiers] for row in found] == [
        ["A", "B"],
        ["A", "B"],
        ["A", "A"],
        ["", "B"],
        ["A", ""],
    ]
    assert not dropped.counts


def test_the_better_answer_does_not_stand_first_by_rule(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"prompt": "Hi", "chosen": "B", "rejected": "A", "explanation": "Longer."})
    [found] = read_preferences(path, Dropped())
    assert (found.completions, found.tiers) == (["A", "B"], B_WINS), "two who disagree judged one item"
    assert found.explanation == "Longer."


def test_the_same_verdict_of_two_annotators_is_no_duplicate(tmp_path: Path) -> None:
    pair = {"prompt": "Hi", "chosen": "A", "rejected": "B"}
    path = jsonl(tmp_path, {**pair, "annotator": "ann"}, {**pair, "annotator": "bob"})
    assert len(read_preferences(path, Dropped())) == 2


# ---- Columns that say once more which answer is better ----------------------------------------------------------

PAIR = {"prompt": "Q", "chosen": "The one.", "rejected": "Another."}
SIDES = {"prompt": "Q", "response_a": "The one.", "response_b": "Another."}
LIST = {"prompt": "Q", "completions": ["The one.", "Another."]}
THE_SAME: list[tuple[Any, Any]] = [
    (PAIR, {"winner": "chosen"}),
    (PAIR, {"winner": "model_b"}),
    (PAIR, {"winner": "gpt-4", "vote": 17, "label": "math"}),
    (PAIR, {"preference": "The one."}),
    (PAIR, {"label": True}),
    (PAIR, {"rank": 1}),
    (PAIR, {"ranks": [1, 2]}),
    (PAIR, {"ranking": {"chosen": 1, "rejected": 2}}),
    (PAIR, {"chosen_rank": 1, "rejected_rank": 2}),
    (PAIR, {"rm_score_chosen": 2.5, "rm_score_rejected": "1"}),
    (PAIR, {"chosen_rating": 4, "rejected_rating": 4, "score_chosen": 8, "score_rejected": 7}),
    (PAIR, {"chosen_rating": 4, "rejected_rating": 3, "score_diff": 0}),
    (PAIR, {"toxicity_score_chosen": 1, "toxicity_score_rejected": 3, "chosen_logp": -9, "rejected_logp": -2}),
    (PAIR, {"margin": 0, "preference_strength": -2, "swapped": False}),
    (PAIR, {"response_a": "The one.", "response_b": "Another.", "winner": "a"}),
    (SIDES, {"winner": "a", "preference": "response_a", "score_a": 3, "score_b": 1}),
    (SIDES, {"winner": "llama", "model_a": "llama", "model_b": "gpt"}),
    (SIDES, {"winner": "a", "vote": 17, "label": "math", "tie": False}),
    (SIDES, {"scores": [2, 1]}),
    (LIST, {"ranks": [1, 2], "scores": [9, 9]}),
    (LIST, {"ranks": [1, 2], "winner": 1}),
    (LIST, {"tiers": [[0], [1]], "scores": [9, 1]}),
]
TIED: list[tuple[Any, Any]] = [
    *((PAIR, {name: word}) for name in ("winner", "label", "preference", "choice") for word in ("tie", "Draw", "same")),
    (PAIR, {"tie": True, "winner": "both bad"}),
    (PAIR, {"ranks": [1, 1]}),
    (PAIR, {"chosen_rank": 1, "rejected_rank": 1}),
    (PAIR, {"preference_strength": 0}),
    (PAIR, {"score_diff": 0}),
    (PAIR, {"reward_margin": "0.0", "margin": 0}),
    (PAIR, {"chosen_rating": 4, "rejected_rating": 4, "score_chosen": 8, "score_rejected": 8}),
    (SIDES, {"winner": "tie", "score_a": 3, "score_b": 3}),
    (SIDES, {"rating_a": 3, "rating_b": "3.0"}),
]
AGAINST: list[tuple[Any, Any, str]] = [
    (PAIR, {"winner": "rejected"}, "winner"),
    (PAIR, {"Preference": "Another."}, "Preference"),
    *((PAIR, {name: value}, name) for name in ("preference", "label", "winner") for value in (0, 1, 2, "1", False)),
    (PAIR, {"isSwapped": True}, "isSwapped"),
    (PAIR, {"rank": 2}, "rank"),
    (PAIR, {"ranks": [2, 1]}, "ranks"),
    (PAIR, {"ranking": ["rejected", "chosen"]}, "ranking"),
    (PAIR, {"ranking": "B > A"}, "ranking"),
    (PAIR, {"chosen_rank": 2, "rejected_rank": 1}, "chosen_rank"),
    (PAIR, {"score_chosen": 1, "score_rejected": 2}, "score_chosen"),
    (PAIR, {"chosenReward": 1, "rejectedReward": 2}, "chosenReward"),
    (PAIR, {"chosen_rating": 5, "rejected_rating": 1, "chosen_score": 1, "rejected_score": 2}, "chosen_score"),
    (PAIR, {"margin": -0.5}, "margin"),
    (PAIR, {"tie": True, "score_chosen": 3, "score_rejected": 1}, "score_chosen"),
    (PAIR, {"winner": "tie", "ranks": [1, 2]}, "ranks"),
    (PAIR, {"response_a": "Another.", "response_b": "The one.", "winner": "a"}, "winner"),
    (SIDES, {"winner": "a", "score_a": 1, "score_b": 2}, "score_a"),
    (SIDES, {"winner": "a", "score_a": 2, "score_b": 2}, "score_a"),
    (SIDES, {"winner": "tie", "response_a_rating": 2, "response_b_rating": 1}, "response_a_rating"),
    (SIDES, {"winner": "a", "preference": "b"}, "preference"),
    (SIDES, {"winner": "a", "tie": True}, "winner"),
    (SIDES, {"winner": "a", "ranks": [2, 1]}, "ranks"),
    (SIDES, {"winner": "a", "flipped": True}, "flipped"),
    (LIST, {"ranks": [1, 2], "scores": [1, 9]}, "scores"),
    (LIST, {"ranks": [1, 2], "tie": True}, "tie"),
    (LIST, {"scores": [9, 1], "winner": "Another."}, "winner"),
    (LIST, {"tiers": [[0], [1]], "ratings": [1, 2]}, "ratings"),
]


@pytest.mark.parametrize(("row", "more"), THE_SAME, ids=[str(more) for _, more in THE_SAME])
def test_a_verdict_that_is_said_twice_is_one_verdict(tmp_path: Path, row: Any, more: Any) -> None:
    [ranking] = read_preferences(jsonl(tmp_path, {**row, **more}), Dropped())
    assert [[ranking.completions[i] for i in tier] for tier in ranking.tiers] == [["The one."], ["Another."]]


@pytest.mark.parametrize(("row", "more"), TIED, ids=[str(more) for _, more in TIED])
def test_a_tie_is_stored_as_a_tie_however_a_row_says_it(tmp_path: Path, row: Any, more: Any) -> None:
    [ranking] = read_preferences(path := jsonl(tmp_path, {**row, **more}), Dropped())
    assert [sorted(tier) for tier in ranking.tiers] == [[0, 1]]
    assert ranking.both_bad is ("both bad" in more.values())
    if row is PAIR:
        assert read_demonstrations(path, dropped := Dropped()) == []
        assert dropped.counts == {"tie: neither answer is preferred": 1}


@pytest.mark.parametrize(("row", "more", "named"), AGAINST, ids=[str(more) for _, more, _ in AGAINST])
def test_a_row_that_contradicts_itself_is_refused_by_line_and_column_with_the_way_out(
    tmp_path: Path, row: Any, more: Any, named: str
) -> None:
    path = jsonl(tmp_path, {**row, **more})
    with pytest.raises(DataError) as error:
        read_preferences(path, Dropped())
    first = str(error.value).split("\n")[0]
    assert first.startswith(f"{path}:1: {named}: ") and "ignore_columns" in first
    others = {key for key in more if key.lower() not in ("tiers", "response_a", "response_b")}
    if row is PAIR:
        [ranking] = read_preferences(path, Dropped(), "refuse", [*others])
        assert ranking.completions[ranking.tiers[0][0]] == "The one."


# ---- What is said of files that cannot be read ------------------------------------------------------------------

OK = {"prompt": "Hi", "completion": "Yo"}
BROKEN_DEMONSTRATIONS = {
    "not JSON": ('{"prompt": ', "not JSON (Expecting value at column 12)"),
    "not an object": ([1, 2], "expected an object, found [1, 2]"),
    "no answer": (
        {"messages": msgs("u: Hi")},
        "messages: turns must alternate user, assistant and end with assistant; found user",
    ),
    "ends with a system turn": (
        {"messages": msgs("u: Hi", "a: Yo", "s: End of log.")},
        "messages: turns must alternate user, assistant and end with assistant; found user, assistant, system",
    ),
    "no messages": ({"messages": []}, "messages: expected messages, found []"),
    "empty question": ({"prompt": " ", "completion": "Yo"}, "prompt, completion: a user turn is empty"),
    "wrong type": ({"instruction": "Add.", "output": 3}, "output: expected text or messages, found 3"),
    "null": ({"question": "1+1?", "answer": None}, "answer: expected text or messages, found null"),
    "unknown role": (
        {"conversations": [{"from": "narrator", "value": "x"}]},
        "conversations.0.from: 'narrator' is none of the known roles system, developer, user, human, prompter, ",
    ),
    "no role": ({"messages": [{"content": "x"}]}, "messages.0.role: missing"),
    "content in parts": (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        'messages.0.content.0: expected a part of type text, found {"type": "text"}',
    ),
    "instance without output": (
        {"instruction": "Add.", "instances": [{"input": "1"}]},
        "instances.0.output: missing",
    ),
    "OASST message": (tree(node("moderator", "A")), "message id-A: role: 'moderator' is none of"),
}


@pytest.mark.parametrize(("row", "message"), BROKEN_DEMONSTRATIONS.values(), ids=BROKEN_DEMONSTRATIONS.keys())
def test_a_broken_demonstration_is_named_by_file_line_and_what_was_found(
    tmp_path: Path, row: Any, message: str
) -> None:
    path = jsonl(tmp_path, OK, row)
    with pytest.raises(DataError) as error:
        read_demonstrations(path, Dropped())
    assert str(error.value).startswith(f"{path}:2: {message}")


BROKEN_PREFERENCES = {
    "PandaLM": (
        {"instruction": "Add.", "input": "", "response1": "A", "response2": "B", "annotator1": 3},
        "annotator1: expected 0 (tie), 1 or 2, found 3",
    ),
    "finegrained_qa": (finegrained(1, 2), "preference: expected 6 verdicts, found [1, 2]"),
    "winner": (
        {"prompt": "Hi", "response_a": "A", "response_b": "B", "winner": "c"},
        'winner: expected a, b, model_a, model_b or tie, found "c"',
    ),
    "different conversations": (
        {"chosen": msgs("u: Hi", "a: A"), "rejected": msgs("u: Ho", "a: B")},
        "rejected: expected one assistant turn after the prompt, found user, assistant; both answers must follow the "
        "same conversation",
    ),
    "text without a prompt": (
        {"chosen": "A", "rejected": "B"},
        "chosen: plain text without a prompt; add a column `prompt`, or write both answers as messages that begin "
        "with it",
    ),
    "tiers": (
        {"prompt": "Hi", "completions": ["A", "B"], "tiers": [[0], [2]]},
        "prompt, completions, tiers: [[0], [2]] is no order of two or more of 2 completions",
    ),
    "an empty tier": (
        {"prompt": "Hi", "completions": ["A", "B"], "tiers": [[], [0, 1]]},
        "prompt, completions, tiers: [[], [0, 1]] has a tier without completions; take it out",
    ),
    "scores against the verdict": (
        {"prompt": "Hi", "chosen": "A", "rejected": "B", "score_chosen": 1, "score_rejected": 2.5},
        "score_chosen: 1 is below score_rejected, 2.5, so the row contradicts itself; swap the answers, or list both "
        "columns in ignore_columns",
    ),
    "one answer with a mark": (
        {"prompt": "Hi", "completion": "A", "label": False},
        "label: says that one answer is good or bad, and no other row has an answer to the same prompt with such a "
        "mark; a preference needs two: pair them as `prompt`, `chosen`, `rejected`, or train on the good ones "
        "(sft.data)",
    ),
    "strength": (
        {"prompt": "Hi", "chosen": "A", "rejected": "B", "strength": 7},
        "strength: Input should be less than or equal to 3",
    ),
}


@pytest.mark.parametrize(("row", "message"), BROKEN_PREFERENCES.values(), ids=BROKEN_PREFERENCES.keys())
def test_a_broken_preference_is_named_by_file_line_and_what_was_found(tmp_path: Path, row: Any, message: str) -> None:
    path = jsonl(tmp_path, row)
    with pytest.raises(DataError) as error:
        read_preferences(path, Dropped())
    assert str(error.value).split("\n")[0] == f"{path}:1: {message}"


def test_an_entry_of_a_json_list_is_named_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([OK, {**OK, "prompt": ""}]))
    with pytest.raises(DataError) as error:
        read_demonstrations(path, Dropped())
    assert str(error.value).startswith(f"{path}: entry 2: prompt, completion: a user turn is empty\n")


def test_unknown_keys_are_answered_with_those_that_would_be_recognised(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"Query": "Hi", "remark": "Yo"})
    with pytest.raises(DataError) as error:
        read_preferences(path, Dropped())
    first, remedy, known = str(error.value).split("\n")
    assert first == f"{path}:1: fits no known format with its columns Query, remark"
    assert remedy == "  mend these rows, or leave them out with on_bad_rows: drop"
    assert known.startswith("  rows are recognised by their columns: prompt, completions, tiers (Trueup's rankings); ")
    assert "chosen or chosen_response or chosen_answer or ..., rejected or " in known


def test_all_problems_of_a_file_come_at_once_and_a_long_list_is_counted(tmp_path: Path) -> None:
    path = jsonl(tmp_path, "{", OK, *[{"messages": "Hi", "n": n} for n in range(29)])
    with pytest.raises(DataError) as error:
        read_demonstrations(path, Dropped())
    lines = str(error.value).split("\n")
    assert lines[0] == f"{path}: 30 problems"
    assert lines[1].startswith(f"  {path}:1: not JSON")
    assert lines[2].startswith(f"  {path}:3: messages: turns must")
    assert lines[21] == "  ... and 10 more" and len(lines) == 23


def test_a_file_that_is_no_list_of_rows_is_refused(tmp_path: Path) -> None:
    def problem(name: str, content: bytes | None) -> str:
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError) as error:
            read_prompts(tmp_path / name, Dropped())
        return str(error.value).removeprefix(f"{tmp_path / name}: ")

    assert problem("gone.jsonl", None) == "no such file"
    assert problem("rows.txt", b"Why?").startswith(
        "neither its name nor its content says what it holds; name it .jsonl, .ndjson, .json, .csv, "
    )
    assert problem("empty.jsonl", b"\n") == problem("empty.json", b"[]") == "holds no rows"
    assert problem("latin.jsonl", b'{"prompt": "caf\xe9"}') == (
        "not UTF-8 (invalid continuation byte at byte 15); save it as UTF-8"
    )
    assert problem("lines.json", b'{"prompt": "1"}\n{"prompt": "2"}').startswith(
        "not JSON (Extra data at line 2, column 1); is it one value a line? Then name it .jsonl"
    )
    assert problem("list.jsonl", b'[{"prompt": "1"},\n{"prompt": "2"}]') == (
        "is one JSON list of 2 values; name it .json"
    )


@pytest.mark.parametrize(
    "names", ["score_chosen score_rejected", "chosen-rating rejected-rating", "chosen_score rejected_score"]
)
def test_equal_scores_of_a_pair_are_a_tie_however_they_are_written(tmp_path: Path, names: str) -> None:
    better, worse = names.split()
    for score in (5, 5.0, "5", "5.0"):
        row = {"prompt": "Hi", "chosen": "B", "rejected": "A", better: score, worse: 5}
        [ranking] = read_preferences(jsonl(tmp_path, row), dropped := Dropped())
        assert [sorted(tier) for tier in ranking.tiers] == [[0, 1]] and not dropped.ignored
    [ranking] = read_preferences(jsonl(tmp_path, {**row, better: "6"}), Dropped())
    assert ranking.tiers == B_WINS
    with pytest.raises(DataError, match="contradicts itself"):
        read_preferences(jsonl(tmp_path, {**row, better: 4.5}), Dropped())


def test_kinds_of_bad_rows_are_counted_up_to_a_number(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path, {"prompt": "Hi", "completion": "Yo"}, *[{f"column {chr(97 + n % 26)}{'x' * n}": 1} for n in range(99)]
    )
    read_demonstrations(path, dropped := Dropped(), "drop")
    assert (
        len(dropped.counts) == 31 and dropped.counts.total() == 99 and dropped.counts["bad row: of another kind"] == 69
    )


SECRET = "A text that nobody is to read in a log. "


def test_an_error_is_small_whatever_the_file_holds_and_spills_no_texts(tmp_path: Path) -> None:
    long = SECRET * 5000
    rows: list[Any] = [
        {long: 1},
        {"messages": long},
        {"messages": [{"role": long, "content": "x"}]},
        {"messages": msgs(f"u: {long}")},
        {"prompt": long, "completion": [long]},
        {"prompt": "Hi", "chosen": [long], "rejected": {"role": "assistant", "content": long, "tool_calls": [long]}},
        {"prompt": "Hi", "completions": ["A", "B"], "tiers": [[0]] * 5_000, "annotator": long},
        {"prompt": "Hi", "response_a": "A", "response_b": "B", "winner": long},
        {f"{SECRET}{n}": n for n in range(5000)},
        [long],
    ]
    path = jsonl(tmp_path, *rows * 3, '{"a": "' + long)
    for read in (read_demonstrations, read_prompts, read_preferences):
        with pytest.raises(DataError) as error:
            read(path, Dropped())
        text = str(error.value)
        assert len(text) < 20_000 and max(map(len, text.splitlines()[:-1])) < 600
        assert SECRET * 3 not in text


def test_bad_rows_are_left_out_counted_by_kind_and_kept_where_that_is_asked(tmp_path: Path) -> None:
    good = {"prompt": "Hi", "completion": "Yo"}
    bad = [{"messages": msgs("u: Hi")}, {"messages": msgs("u: Hi", "a: A", "u: B")}, "{", {"prompt": "Q"}]
    path = jsonl(tmp_path, good, *bad)
    assert len(read_demonstrations(path, dropped := Dropped(), "drop")) == 1
    assert dropped.counts == {
        "bad row: messages: turns must alternate user, assistant and end with assistant": 2,
        "bad row: not JSON": 1,
        "bad row: fits no known format with its columns prompt": 1,
    }
    assert [(row.where, row.row) for row in dropped.left_out] == [
        (f"{path}:{n}", row) for n, row in enumerate(bad, start=2)
    ]
    with pytest.raises(DataError, match="4 problems"):
        read_demonstrations(jsonl(tmp_path, *bad), Dropped(), "drop")


# ---- Documentation ----------------------------------------------------------------------------------------------

MEANINGS = {
    "conversation": vocabulary.CONVERSATIONS,
    "question": vocabulary.QUESTIONS,
    "given": vocabulary.GIVEN,
    "choices": vocabulary.CHOICES,
    "system": vocabulary.SYSTEM,
    "history": vocabulary.HISTORY,
    "answer": vocabulary.ANSWERS,
    "reference": vocabulary.REFERENCES,
    "chosen": vocabulary.CHOSEN,
    "rejected": vocabulary.REJECTED,
    "label": vocabulary.LABELS,
    "weight": vocabulary.WEIGHTS,
    "not trained": vocabulary.NOT_TRAINED,
    "excluded": vocabulary.EXCLUDED,
    "kept": vocabulary.KEPT,
    "bad": vocabulary.BAD,
    "good": vocabulary.GOOD,
    "marked": vocabulary.MARKED,
    "clean": vocabulary.CLEAN,
    "split": vocabulary.SPLITS,
    "judged": vocabulary.JUDGED,
    "cut": vocabulary.CUT,
    "whole": vocabulary.WHOLE,
    "last turn alone": vocabulary.LAST_TURN_ALONE,
    "annotator": vocabulary.ANNOTATORS,
    "tools": [*vocabulary.TOOLS],
    "own id": vocabulary.ROW_IDS,
    "why": vocabulary.REASONS,
    "criterion": vocabulary.CRITERIA,
}


def table(title: str) -> list[list[str]]:
    """The cells of the table under a heading of the documentation, without its head."""
    section = DOCS.read_text(encoding="utf-8").split(f"## {title}\n")[1].split("\n## ")[0]
    return [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")][2:]


def test_the_documentation_names_every_column_of_every_meaning() -> None:
    told = {
        meaning: [name.strip("`") for name in names.split(", ")] for meaning, names, _ in table("What columns mean")
    }
    assert told == MEANINGS


@pytest.mark.parametrize(
    ("title", "known", "read"),
    [
        ("Demonstrations", formats.DEMONSTRATIONS, read_demonstrations),
        ("Prompts", formats.PROMPTS, read_prompts),
        ("Preferences", formats.PREFERENCES, read_preferences),
    ],
    ids=["Demonstrations", "Prompts", "Preferences"],
)
def test_the_documentation_has_every_format_in_order_with_an_example_that_reads(
    tmp_path: Path, title: str, known: list[Format], read: Any
) -> None:
    lines = table(title)
    named = [name for line in lines for name in (line[0].split(", ") if "as in" in line[1] else [line[0]])]
    assert named == [format.name for format in known]
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "rows.json").write_text(json.dumps({"annotations": ["Add the numbers."]}))
    for name, keys, example, *_ in lines:
        plain = [key for format in known if format.name == name for key in format.keys if "|" not in key]
        assert all(f"`{key}`" in keys for key in plain), name
        if example.startswith("`"):
            path = tmp_path / "rows.json"
            path.write_text(example.strip("`"))
            assert read(path, dropped := Dropped()), name
            assert not dropped.counts, name


def test_an_answer_that_is_empty_is_judged_like_any_other_in_each_format_with_a_column_for_each_answer(
    tmp_path: Path,
) -> None:
    emptied = set()
    for name, _, example, *_ in table("Preferences"):
        row = json.loads(example.strip("`")) if example.startswith("`{") else {}
        rankings = read_preferences(jsonl(tmp_path, row), Dropped()) if row else []
        texts = [text for one in rankings for text in one.completions]
        for key in [key for key, value in row.items() if value in texts and value not in ("a", "b")]:
            found = read_preferences(jsonl(tmp_path, {**row, key: ""}), dropped := Dropped())
            assert any("" in one.completions for one in found) and not dropped.counts, (name, key)
            emptied.add(name)
    assert emptied >= {"PandaLM", "finegrained_qa", "SHP", "side by side"}


def test_answers_that_are_judged_are_no_part_of_the_prompt(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    answers = {"answer_a": "One.", "answer_b": "Two.", "answer_c": "Three."}
    for verdict in ("winner", "choice", "preference"):
        path.write_text(json.dumps({"prompt": "Which?", **answers, verdict: "a"}) + "\n")
        [row] = read_preferences(path, Dropped())
        assert ([one.content for one in row.prompt], row.completions) == (["Which?"], ["One.", "Two."])
    path.write_text(json.dumps({"prompt": "Which?", **answers, "winner": "a"}) + "\n")
    [asked] = read_prompts(path, Dropped())
    assert [one.content for one in asked.prompt] == ["Which?"]


# ---- Texts that look like nothing, and answers that are none to imitate ------------------------------------------


@pytest.mark.parametrize("text", ["[]", "{}", "null", "None", "0", "false"])
def test_what_is_asked_and_imitated_is_text_whatever_it_looks_like(tmp_path: Path, text: str) -> None:
    rows = [
        {"instruction": "Reverse it.", "input": text, "output": text},
        {"question": "Which?", "option_a": "x", "option_b": text, "answer": "B"},
    ]
    reverse, choose = read_demonstrations(jsonl(tmp_path, *rows), Dropped())
    assert [message.content for message in reverse.messages] == [f"Reverse it.\n\n{text}", text]
    assert f"B. {text}" in choose.messages[0].content
    nothing = {"instruction": "Q", "output": "A", "tools": "[]", "history": "[]", "images": "null"}
    [row] = read_demonstrations(jsonl(tmp_path, nothing), Dropped())
    assert [message.content for message in row.messages] == ["Q", "A"]


def test_the_marks_of_chatml_bound_a_text_exactly_and_those_of_hh_have_spaces_around(tmp_path: Path) -> None:
    code = "    return x\n"
    chatml = {"text": f"<|im_start|>user\nCode?<|im_end|>\n<|im_start|>assistant\n{code}<|im_end|>\n"}
    hh = {"prompt": "\n\nHuman: Q?\n\nAssistant:", "completion": " A."}
    rows = read_demonstrations(jsonl(tmp_path, chatml, hh), Dropped())
    assert [row.messages[-1].content for row in rows] == [code, "A."]


def test_a_tie_and_a_pair_that_contradicts_itself_are_no_demonstrations(tmp_path: Path) -> None:
    pair = {"prompt": "Q", "chosen": "A", "rejected": "B"}
    good = {**pair, "chosen": "C", "chosen_score": 3, "rejected_score": 1}
    rows = [good, {**pair, "tie": True}, {**pair, "chosen_score": 2, "rejected_score": 2}]
    [row] = read_demonstrations(jsonl(tmp_path, *rows), dropped := Dropped())
    assert row.messages[-1].content == "C" and dropped.counts == {"tie: neither answer is preferred": 2}
    with pytest.raises(DataError, match="contradicts itself"):
        read_demonstrations(jsonl(tmp_path, {**pair, "chosen_score": 1, "rejected_score": 3}), Dropped())


def test_a_number_that_is_text_names_no_choice_by_guess(tmp_path: Path) -> None:
    row = {"question": "Which?", "option_a": "x", "option_b": "y"}
    with pytest.raises(DataError, match="write the letter, or a number that counts from 0"):
        read_demonstrations(jsonl(tmp_path, {**row, "answer": "1"}), Dropped())
    number, text = read_demonstrations(
        jsonl(tmp_path, {**row, "answer": 1}, {**row, "option_b": "7", "answer": "7"}), Dropped()
    )
    assert [one.messages[-1].content for one in (number, text)] == ["B", "7"]


@pytest.mark.parametrize("tiers", [[[True], [False]], [["1"], ["0"]]], ids=str)
def test_tiers_are_numbers_and_nothing_that_could_be_read_as_some(tmp_path: Path, tiers: Any) -> None:
    with pytest.raises(DataError, match=r"rows.jsonl:1: tiers.0.0: "):
        read_preferences(jsonl(tmp_path, {"prompt": "Q", "completions": ["A", "B"], "tiers": tiers}), Dropped())


@pytest.mark.parametrize("longer", ["chosen", "rejected"])
@pytest.mark.parametrize("more", [("s: Be rude.",), ("u: Earlier?", "a: Yes.")], ids=["system", "turns"])
def test_answers_behind_different_conversations_are_no_pair(tmp_path: Path, longer: str, more: Any) -> None:
    sides = {"chosen": msgs("u: Q", "a: A"), "rejected": msgs("u: Q", "a: B")}
    with pytest.raises(DataError, match="both answers must follow the same conversation"):
        read_preferences(jsonl(tmp_path, {**sides, longer: msgs(*more) + sides[longer]}), Dropped())
    # What another column puts before both need not be repeated, nor the conversation by an answer alone.
    for rejected in (sides["rejected"], msgs("a: B"), "B"):
        [row] = read_preferences(jsonl(tmp_path, {**sides, "rejected": rejected, "system": "Be kind."}), Dropped())
        assert said(row.prompt) == [("s", "Be kind."), ("u", "Q")] and row.completions == ["A", "B"]


@pytest.mark.parametrize("row", ['"It is red.', '"It" is red.'], ids=["never closed", "closed too early"])
def test_a_quote_in_a_table_takes_no_other_row_into_its_text(tmp_path: Path, row: str) -> None:
    (path := tmp_path / "rows.csv").write_text(f'prompt,completion\nQ,"two\nlines"\nR,{row}\nS,C\n')
    with pytest.raises(DataError, match=r"rows.csv:4: not CSV \(.*look at the quotes of this row"):
        read_demonstrations(path, Dropped())
    path.write_text('prompt,completion\nQ,"He said ""red""."\nR,5" of it\n')
    rows = read_demonstrations(path, Dropped())
    assert [one.messages[-1].content for one in rows] == ['He said "red".', '5" of it']

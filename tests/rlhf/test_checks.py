"""What a program can decide about answers, and the test that compares two policies by it."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from rlhf.checks import final_number, instruction_verdicts, load_check, paired_accuracy, read_instructions
from trueup.data.records import read_jsonl
from trueup.errors import DataError

VERDICTS = Path(__file__).parents[1] / "data" / "ifeval_gpt4_strict.jsonl"
NO_COMMA = {"prompt": "No commas.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}

Jsonl = Callable[..., Path]


@pytest.fixture
def jsonl(tmp_path: Path) -> Jsonl:
    def write(*rows: dict[str, Any]) -> Path:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


# ---- IFEval -----------------------------------------------------------------------------------------------------


def test_verdicts_are_those_of_the_benchmarks_authors() -> None:
    names = set()
    for number, row in read_jsonl(VERDICTS):
        _, instructions = read_instructions(row, f"{VERDICTS}:{number}")
        assert instruction_verdicts(instructions, row["response"]) == row["follow_instruction_list"], f"line {number}"
        names |= {one.name for one in instructions}
    assert len(names) == 13


def test_an_answer_is_right_if_it_follows_every_instruction() -> None:
    check = load_check("ifeval", VERDICTS)
    assert check.unsupported == {} and check.verifier.startswith("lm-eval ")
    for i, (_, row) in enumerate(read_jsonl(VERDICTS)):
        assert check.prompts[i].prompt[0].content == row["prompt"]
        assert check.verify(i, row["response"]) is all(row["follow_instruction_list"])


def test_an_empty_answer_follows_nothing(jsonl: Jsonl) -> None:
    check = load_check("ifeval", jsonl(NO_COMMA))
    assert (check.verify(0, "None here."), check.verify(0, "Here, one."), check.verify(0, " \n")) == (
        True,
        False,
        False,
    )


def test_the_language_of_a_text_that_could_be_several_is_always_the_same(jsonl: Jsonl) -> None:
    asked = {"instruction_id_list": ["language:response_language"], "kwargs": [{"language": "en"}]}
    check = load_check("ifeval", jsonl({"prompt": "Say it in English.", **asked}))
    for text in ("Otec matka syn.", "I am to go", "a b c d e", "no la casa taxi"):
        assert len({check.verify(0, text) for _ in range(30)}) == 1


def test_an_instruction_that_the_verifier_lacks_is_named_and_leaves_the_prompt_open(jsonl: Jsonl) -> None:
    both = {"instruction_id_list": ["punctuation:no_comma", "style:rhymes"], "kwargs": [{}, {"lines": 4}]}
    check = load_check("ifeval", jsonl({"prompt": "Rhyme.", **both}, NO_COMMA))
    assert check.unsupported == {"style:rhymes": 1}
    assert check.verify(0, "One, two.") is None and check.verify(1, "One, two.") is False


def test_what_the_verifier_would_replace_by_chance_is_not_verified(jsonl: Jsonl) -> None:
    kwargs = {"letter": "#", "let_frequency": 4, "let_relation": "at least"}
    row = {"prompt": "Tag it.", "instruction_id_list": ["keywords:letter_frequency"], "kwargs": [kwargs]}
    check = load_check("ifeval", jsonl(row))
    assert check.verify(0, "#a #b #c #d") is None
    (name,) = check.unsupported
    assert name.startswith("keywords:letter_frequency") and "'#'" in name


def test_arguments_that_are_null_count_as_absent(jsonl: Jsonl) -> None:
    check = load_check("ifeval", jsonl({**NO_COMMA, "kwargs": [{"num_words": None, "language": None}]}))
    assert check.verify(0, "None here.") is True


WORDS = {"prompt": "Be long.", "instruction_id_list": ["length_constraints:number_words"]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Hi."}, r"rows.jsonl:2: instruction_id_list: Field required"),
        ({**NO_COMMA, "kwargs": []}, r"rows.jsonl:2: 1 instructions, but kwargs for 0"),
        (
            {**WORDS, "kwargs": [{"num_words": 9}]},
            r"rows.jsonl:2: kwargs of length_constraints:number_words: wants num_words, relation, found num_words",
        ),
        (
            {**WORDS, "kwargs": [{"num_words": 9, "relation": "about"}]},
            r"rows.jsonl:2: kwargs of length_constraints:number_words: .*about",
        ),
        ({**NO_COMMA, "kwargs": [{"n": 1}]}, r"rows.jsonl:2: kwargs of punctuation:no_comma: wants none, found n"),
    ],
)
def test_a_bad_row_is_named_by_its_line(jsonl: Jsonl, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_check("ifeval", jsonl(NO_COMMA, row))


def test_a_subset_is_drawn_by_seed_and_says_so(jsonl: Jsonl) -> None:
    path = jsonl(*({"question": f"{i}?", "answer": f"#### {i}"} for i in range(50)))
    some = load_check("gsm8k", path, limit=5, seed=1)
    drawn = [prompt.prompt[0].content for prompt in some.prompts]
    assert len(drawn) == 5 and drawn == sorted(drawn, key=lambda text: int(text[:-1]))
    assert [prompt.prompt[0].content for prompt in load_check("gsm8k", path, 5, 1).prompts] == drawn
    assert [prompt.prompt[0].content for prompt in load_check("gsm8k", path, 5, 2).prompts] != drawn
    assert some.note == f"5 of 50 prompts of {path.name}, drawn with seed 1"
    assert some.verify(0, drawn[0][:-1]) is True
    assert load_check("gsm8k", path).note == f"all 50 prompts of {path.name}"


# ---- GSM8K ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("It is 12.", 12),
        ("She pays $1,234.50.", "1234.5"),
        ("20 + 22 = 42 apples", 42),
        ("It fell by -7", -7),
        ("It fell by −7 degrees", -7),
        ("A loss of -$3", -3),
        ("He has 10-5", 5),
        ("so x=-2", -2),
        ("3/4 of the cake", "3/4"),
        (".5", "1/2"),
        ("5.0", 5),
        ("**\\boxed{17}**", 17),
        ("1, 2 and 3", 3),
        ("12,34", 34),
        ("007", 7),
        ("#### 18 dollars of 20", 18),
        ("#### 1\nNo: #### 2", 2),
        ("The answer is 6\n####", 6),
        ("5/0", 0),
        ("Many.", None),
        ("1" * 9000, None),
        ("", None),
    ],
)
def test_the_final_number_of_an_answer(text: str, number: int | str | None) -> None:
    assert final_number(text) == (None if number is None else Fraction(number))


def test_an_answer_is_right_if_its_number_is_the_references(jsonl: Jsonl) -> None:
    check = load_check(
        "gsm8k", jsonl({"question": "How many?", "answer": "10 * 125 = <<10*125=1250>>1250\n#### 1,250"})
    )
    right = ["1250", "That is $1,250.00.", "#### 1250"]
    assert [check.verify(0, text) for text in right] == [True] * 3
    assert [check.verify(0, text) for text in ("125", "1250 of 2000", "Many.", "")] == [False] * 4


@pytest.mark.parametrize("answer", ["It is 5.", "#### five"])
def test_a_reference_without_its_number_is_named_by_its_line(jsonl: Jsonl, answer: str) -> None:
    with pytest.raises(DataError, match=r"rows.jsonl:1: answer: no number after ####; found '"):
        load_check("gsm8k", jsonl({"question": "How many?", "answer": answer}))


def test_an_empty_file_checks_nothing_and_says_so(jsonl: Jsonl) -> None:
    with pytest.raises(DataError, match="no rows"):
        load_check("gsm8k", jsonl())


# ---- Two policies -----------------------------------------------------------------------------------------------


def test_a_regression_is_told_from_chance_by_the_prompts_that_one_policy_alone_got_right() -> None:
    # 8 against 1: two-sided, 2 * (C(9,0) + C(9,1)) / 2^9 = 20 / 512
    reference = [True] * 5 + [True] * 8 + [False] * 1 + [False] * 6
    aligned = [True] * 5 + [False] * 8 + [True] * 1 + [False] * 6
    found = paired_accuracy(reference, aligned).plain()
    assert found["mcnemar"] == {
        "p_value": pytest.approx(20 / 512),
        "both": 5,
        "only_sft": 8,
        "only_aligned": 1,
        "neither": 6,
    }
    assert found["sft"]["value"] == 13 / 20 and found["aligned"]["value"] == 6 / 20
    assert found["sft"]["ci_low"] < 13 / 20 < found["sft"]["ci_high"]
    swapped = paired_accuracy(aligned, reference).plain()
    assert swapped["mcnemar"]["p_value"] == found["mcnemar"]["p_value"] and swapped["aligned"] == found["sft"]


def test_policies_that_are_right_on_the_same_prompts_do_not_differ() -> None:
    assert paired_accuracy([True, False], [True, False]).plain()["mcnemar"]["p_value"] == 1


def test_what_cannot_be_verified_is_counted_and_left_out_on_both_sides() -> None:
    found = paired_accuracy([True, None, False], [True, None, True]).plain()
    assert found["unverified"] == 1 and found["sft"]["n"] == found["aligned"]["n"] == 2
    nothing = paired_accuracy([None], [None]).plain()
    assert nothing["sft"]["value"] is None and nothing["mcnemar"]["p_value"] == 1

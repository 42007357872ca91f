"""What an answer says, and what in a text would give away who wrote it."""

from __future__ import annotations

import time

import pytest

from ui.labels.judgements import agrees, as_read, choice_of, clean, meaning_of, names_itself, to_indices, to_places


@pytest.mark.parametrize("drawn", [[0, 1], [1, 0]])
@pytest.mark.parametrize("choice", ["a_much", "a", "a_slightly", "tie", "b_slightly", "b", "b_much", "both_bad"])
def test_a_choice_comes_back_from_what_is_stored_of_it(choice: str, drawn: list[int]) -> None:
    tiers, strength = meaning_of(choice, "graded")
    assert tiers is not None
    stored = to_indices(tiers, drawn)
    assert choice_of(stored, strength, choice == "both_bad", drawn) == choice


def test_sides_are_undone_and_done_again() -> None:
    drawn = [2, 0, 3, 1]
    assert to_indices([[1], [0, 3], [2]], drawn) == [[0], [1, 2], [3]]
    assert to_places([[0], [1, 2], [3]], drawn) == [[1], [0, 3], [2]]


@pytest.mark.parametrize(
    ("said", "known", "right"),
    [
        ([[0], [1]], [[0], [1]], True),
        ([[1], [0]], [[0], [1]], False),
        ([[0, 1]], [[0], [1]], False),
        ([[0, 1]], [[0, 1]], True),
        ([[0], [1]], [[0, 1]], False),
        ([[0], [1], [3], [2]], [[0], [1], [2], [3]], True),  # 5 of 6 pairs as known
        ([[1], [0], [3], [2]], [[0], [1], [2], [3]], False),  # 4 of 6
        ([[2], [0], [1]], [[0], [1]], True),  # the known answer says nothing of 2
    ],
)
def test_an_answer_is_right_when_it_orders_what_is_known_to_differ(
    said: list[list[int]], known: list[list[int]], right: bool
) -> None:
    assert agrees(said, known) is right


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Yes.<|im_end|>", "Yes."),
        ("Yes.<|im_end|>\n<|endoftext|>", "Yes."),
        ("Yes.</s>", "Yes."),
        ("<s> Yes.", " Yes."),
        ("Yes.<|im_", "Yes."),
        ("Yes.<end_of_turn>", "Yes."),
        ("Yes.\n\n</s>\n <|im_end|> ", "Yes.\n\n"),
        ("Yes. \n\n", "Yes. \n\n"),
        ("[INST] no [/INST] Yes", "⟨token⟩ no ⟨token⟩ Yes"),
        ("A turn ends with <|im_end|> there.", "A turn ends with ⟨token⟩ there."),
        ("a < b | c > d", "a < b | c > d"),
        ("<s>struck</s> is HTML", "struck</s> is HTML"),
        ("    indented code", "    indented code"),
    ],
)
def test_all_of_an_answer_is_shown_but_the_tokens_of_a_template(text: str, shown: str) -> None:
    assert clean(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "As SmolLM, I cannot say.",
        "Hello! I am ChatGPT, here to help.",
        "I'm Claude.",
        "I am an AI language model trained by OpenAI.",
        "My name is Qwen2 and I live in a computer.",
        "I was created by Hugging Face.",
        "I am a large language model, trained by Google.",
    ],
)
def test_an_answer_that_says_which_model_it_is_is_found(text: str) -> None:
    assert names_itself(text)


@pytest.mark.parametrize(
    "text",
    [
        "You can ask ChatGPT about it.",
        "As an AI I have no opinion.",
        "Claude Monet painted it.",
        "I am a gemini, born in June.",
        "This is as good as it gets.",
        "The llama is as tall as a person.",
        "The phone was made by Google.",
    ],
)
def test_an_answer_about_a_model_does_not_say_that_it_is_one(text: str) -> None:
    assert names_itself(text) is None


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("The same.", "The  same. ", True),
        ("a\n\nb", "\n\na \n \n\nb\n", True),
        ("Yes.<|im_end|>", "Yes.", True),
        ("if x:\n    go", "if x:\ngo", False),
        ("if x:\n    go", "    if x:\n    go", False),
        ("a\nb", "a b", False),
        ("a\n\nb", "a\nb", False),
    ],
)
def test_answers_that_read_the_same_are_the_same_and_indentation_is_read(one: str, other: str, same: bool) -> None:
    assert (as_read(one) == as_read(other)) is same


DEGENERATE = [
    *("\n", " ", "\t", "\r\n", "</s>", "\n</s>", "<pad> ", "<s> ", "<|a|>", "<|", "<|a\n", "<｜a", "[INST]"),
    *("I am ", "as ", "I am a ", "i'm a trained by ", "my name is called ", "a", "-", "`", "<"),
]


@pytest.mark.parametrize("unit", DEGENERATE)
@pytest.mark.parametrize("end", ["", "b"])
def test_no_answer_takes_long_to_clean(unit: str, end: str) -> None:
    text = "a" + unit * (100_000 // len(unit)) + end
    began = time.process_time()
    clean(text), names_itself(text), as_read(text)
    assert time.process_time() - began < 2

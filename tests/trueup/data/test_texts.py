"""What is said of texts, counted by hand."""

from __future__ import annotations

import math

import pytest

from trueup.data.texts import distinct_n, mean_self_similarity, repetition, self_similarity


def test_distinct_word_pairs_are_counted_over_all_texts_together() -> None:
    assert distinct_n(["A b, a b a b", "c d"]) == 3 / 6  # ab, ba, cd of ab ba ab ba ab cd
    assert distinct_n(["a b", "a b"], n=1) == 2 / 4
    assert distinct_n(["", "word"]) == 0


def test_repetition_is_the_share_of_texts_that_say_three_words_twice() -> None:
    assert repetition(["a b c a b c", "a b c a b", "", "a a a a"]) == 0.5


def test_likeness_of_two_texts_is_the_share_of_word_pairs_that_both_have() -> None:
    assert self_similarity(["the cat sat", "the cat ran"]) == pytest.approx(1 / 3)  # of: the cat, cat sat, cat ran


def test_likeness_is_averaged_over_all_pairs_of_texts() -> None:
    assert self_similarity(["a b", "a b", "c d"]) == pytest.approx(1 / 3)


def test_equal_texts_are_alike_and_others_are_not_however_short() -> None:
    assert self_similarity(["Yes.", "yes"]) == 1
    assert self_similarity(["yes", "no"]) == 0
    assert self_similarity(["", ""]) == 1
    assert self_similarity(["", "yes it is"]) == 0


def test_the_order_of_texts_does_not_matter() -> None:
    texts = ["a b c", "b c d", "c d e f", "a b"]
    assert self_similarity(texts) == pytest.approx(self_similarity(texts[::-1]))


def test_one_text_is_like_nothing() -> None:
    assert math.isnan(self_similarity(["a b c"]))


def test_likeness_over_prompts_has_an_interval_over_prompts() -> None:
    made = mean_self_similarity([["a b", "a b"], ["a b", "c d"], ["a b"]] * 10)
    assert made.value == 0.5
    assert made.n == 20
    assert 0.2 < made.low < 0.5 < made.high < 0.8


def test_single_answers_have_no_likeness() -> None:
    made = mean_self_similarity([["a b"], ["c d"]])
    assert math.isnan(made.value)
    assert (made.low, made.high, made.n) == (0, 1, 0)

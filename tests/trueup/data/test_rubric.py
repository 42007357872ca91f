"""The simulated preference: each criterion by example, and that it is not a disguise for length."""

from __future__ import annotations

import pytest

from trueup.data.records import Message
from trueup.data.rubric import SAYS_WHY, content_stems, stem

PROMPT = [Message(role="user", content="Why does bread go stale faster in a cold fridge than on the counter?")]
GOOD = "Bread goes stale sooner in the fridge because the cold makes its starch firm up, so keep it outside."


def met(text: str, finished: bool = True) -> dict[str, float]:
    """Degrees by the name of each criterion."""
    return {what.split(":")[0]: met(PROMPT, text, finished) for _, what, met in SAYS_WHY.criteria}


def score(text: str, finished: bool = True) -> float:
    return SAYS_WHY.score(PROMPT, text, finished)


def test_a_good_answer_gets_all_ten_points_and_an_empty_one_those_for_what_it_does_not_do() -> None:
    assert score(GOOD) == 10.0
    assert met("") == {"reason": 0, "subject": 0, "own words": 1, "end": 0, "prose": 0}


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        (GOOD.removesuffix("."), {"end": 0}),
        ("- " + GOOD, {"prose": 0}),
        (GOOD.replace(", so", ".\n\nSo"), {"prose": 0}),
        ("b" + GOOD[1:], {"prose": 0}),
        (GOOD.replace("starch", "**starch**"), {"prose": 0}),
        (GOOD[:-1] + ", because the cold makes it so.", {"own words": 0}),
        ("It does because of how fridges work, as people who bake at home have known for ages.", {"subject": 0.5}),
        ("You ask why does bread go stale faster in a cold fridge, so it is a matter of starch.", {"own words": 0}),
        ("Bread goes stale sooner in the fridge. The cold makes its starch firm up. Keep it outside.", {"reason": 0}),
    ],
)
def test_what_is_missing_costs_its_own_points_and_no_others(text: str, lost: dict[str, float]) -> None:
    assert met(text) == pytest.approx({"reason": 1, "subject": 1, "own words": 1, "end": 1, "prose": 1} | lost)


def test_an_answer_that_was_cut_is_not_finished_even_where_a_sentence_ends() -> None:
    assert met(GOOD, finished=False)["end"] == 0
    assert score(GOOD) - score(GOOD, finished=False) == 1.0


def test_neither_the_longer_nor_the_shorter_answer_wins_for_its_length() -> None:
    short, long = (
        "Bread in a cold fridge goes stale because its starch sets there.",
        GOOD + " Toast it if it is too late for that.",
    )
    assert score(short) == score(GOOD) == score(long) == 10.0


def test_words_of_one_subject_have_one_stem_and_words_that_carry_none_do_not_count() -> None:
    assert len({stem(word) for word in ("sink", "sinks", "sinking")}) == 1
    assert content_stems("What is it that they would like me to say about this?") == set()

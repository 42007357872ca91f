"""Which texts are nearly the same: those that comparing all pairs would find, without comparing all pairs."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from itertools import pairwise

import pytest

from duplicates import alike, changed, planted, vocabulary
from trueup.config import SplitConfig
from trueup.data.duplicates.forms import FORM
from trueup.data.duplicates.near import repeated, resembling
from trueup.data.duplicates.resemblance import shingles_of_all
from trueup.data.duplicates.training import across_split, near_heldout
from trueup.data.records import Message, Prompt
from trueup.data.split import is_heldout

WORDS = vocabulary(random.Random(0))
TEXT = "Why does bread go stale faster in the fridge than on the kitchen counter, and how do I keep it fresh?"


def like(*texts: str) -> list[tuple[int, int]]:
    return [(one.text, one.like) for one in repeated([[text] for text in texts])]


def test_what_differs_in_a_word_or_in_punctuation_is_nearly_the_same_and_what_differs_in_sense_is_not() -> None:
    others = [
        TEXT.upper().replace(",", ""),
        TEXT.replace("fresh", "soft"),
        f"Please: {TEXT}",
        TEXT[:40],
        TEXT[::-1],
        "",
    ]
    near = repeated([[text] for text in [TEXT, "How do I sharpen a knife?", *others]])
    assert [(one.text, one.like) for one in near] == [(2, 0), (3, 0), (4, 0)]
    assert near[0].alike == 1.0 > near[1].alike > 0.8
    assert like("面包为什么在冰箱里更快变硬", "刀怎么磨", "面包为什么在冰箱里更快变硬呢") == [(2, 0)]
    assert like() == like("", "!?", "...") == [], "texts without words say nothing"


def test_other_numbers_and_other_signs_make_another_question() -> None:
    asked = "What is 12 times 7, worked out by hand and without a table?"
    assert alike(asked, asked.replace("12", "13")) > 0.8
    assert like(asked, asked.replace("12", "13"), asked.replace("12", "12 or 13"), asked.lower()) == [(3, 0)]
    assert like("Is a < b?", "Is a > b?", "is a < b") == [(2, 0)]
    assert like("def f(x): return x - y", "def f(x): return x + y", "def f(x): return x * y") == []


def test_the_earliest_stays_and_what_resembles_none_that_stays_stays_too() -> None:
    words = [f"word{chr(97 + n // 26)}{chr(97 + n % 26)}" for n in range(60)]
    first, middle, last = (" ".join(words[start : start + 50]) for start in (0, 4, 8))
    assert alike(first, middle) > 0.8 < alike(middle, last) and alike(first, last) < 0.8
    assert like(first, middle, last) == [(1, 0)] and like(middle, first, last) == [(1, 0), (2, 0)]
    assert like(first, middle, middle.upper() + "!") == [(1, 0), (2, 0)], "it is said which one stayed"


def test_a_text_of_parts_resembles_as_far_as_the_part_does_that_resembles_least() -> None:
    passage = f"Read this and answer. {TEXT * 5} "
    rows = [
        [passage + "Where does it stay fresh?", "On the counter, in a bag of cloth."],
        [passage + "What happens in the fridge?", "It goes stale, since starch hardens in the cold."],
        [passage + "Where does it stay fresh", "on the counter in a bag of cloth"],
        ["Where does it stay fresh?", "On the counter, in a bag of cloth."],
    ]
    assert [(one.text, one.like) for one in repeated(rows)] == [(2, 0)]


def test_resemblance_is_found_as_comparing_all_pairs_would() -> None:
    texts, made_of = planted(1500, seed=1)
    wanted = {index for index, of in made_of.items() if alike(texts[index][0], texts[of][0]) >= 0.8}
    near = repeated(texts)
    assert 60 < len(wanted) < len(made_of) and {one.text for one in near} == wanted
    for one in near:
        assert abs(one.alike - alike(texts[one.text][0], texts[one.like][0])) < 1e-9
    heldout = [index % 3 == 0 for index in range(len(texts))]
    across = {(one.text, one.like) for one in resembling(texts, heldout)}
    for index in wanted:
        of = made_of[index]
        if heldout[index] != heldout[of]:
            assert (of, index) in across or (index, of) in across or any(of == text for text, _ in across)
    assert all(heldout[like] and not heldout[text] for text, like in across)


FORMS = {
    "at the end": "Break the following word into its letters and separate them by spaces, and say nothing else: {}",
    "at the start": "{} is a word; break it into its letters, separate them by spaces, and say nothing else at all",
    "between": "Write the plural of the English noun {} in one word, without any explanation and in lower case",
    "beside a text": f"{TEXT} Answer in two sentences that a child can read aloud, and use the word {{}} in one.",
}


def filled(form: str, count: int) -> list[list[str]]:
    names = ["".join(random.Random(n).choices("abcdefghijklmnopqrstuvwxyz", k=3 + n % 5)) for n in range(count)]
    return [[form.format(name)] for name in names]


@pytest.mark.parametrize("place", FORMS)
@pytest.mark.parametrize("count", [15, 40, 200])
def test_fillings_of_a_form_are_questions_of_their_own_unless_one_is_asked_again(place: str, count: int) -> None:
    asked = filled(FORMS[place], count)
    heldout = [number % 4 == 0 for number in range(count)]
    assert alike(asked[0][0], asked[5][0]) > 0.8
    assert resembling(asked, heldout) == []
    (text,) = asked[8]
    again = [text.upper(), f"Please: {text}", f"{text} I wonder", text.replace("and", "also")]
    near = resembling([*asked, *([one] for one in again)], [*heldout, *(False for _ in again)])
    assert [(one.text, one.like) for one in near] == [(count + number, 8) for number in range(len(again))]


def test_a_few_of_a_form_are_paraphrases() -> None:
    few = filled(FORMS["at the end"], FORM // 2)
    assert len(resembling(few, [number == 0 for number in range(len(few))])) == len(few) - 1


def added(text: str, rng: random.Random) -> str:
    before = rng.choice(
        ["Tell me", "Please", "I wonder", "Say", "Hello", "Could you say", "Well", "Quick one", "Hm", ""]
    )
    return f"{before}: {text} {rng.choice(['Thanks', 'Any idea', 'Please', 'Briefly', 'If you can', ''])}"


@pytest.mark.parametrize("how", [lambda text, rng: changed(text, WORDS, rng), added], ids=["changed", "added to"])
@pytest.mark.parametrize("count", [1, 5, 11, 30, 200])
def test_paraphrases_of_one_text_are_found_however_many_they_are(how: Callable[..., str], count: int) -> None:
    rng = random.Random(count)
    texts = list(dict.fromkeys([TEXT, *(how(TEXT, rng) for _ in range(count))]))
    wanted = {index for index, text in enumerate(texts) if index and alike(TEXT, text) >= 0.8}
    heldout = [text == TEXT for text in texts]
    near = resembling([[text] for text in texts], heldout)
    assert {one.text for one in near} == wanted and (wanted or count == 1)


def test_paraphrases_are_found_where_they_lie_on_both_sides() -> None:
    rng, long = random.Random(3), f"{TEXT} I bake twice a week and always lose half a loaf, a pity since flour is dear."
    texts = list(dict.fromkeys(changed(long, WORDS, rng) for _ in range(200)))
    heldout = [index % 5 == 0 for index in range(len(texts))]
    held = [text for text, side in zip(texts, heldout, strict=True) if side]
    wanted = {
        index
        for index, text in enumerate(texts)
        if not heldout[index] and max(alike(text, other) for other in held) >= 0.8
    }
    near = {one.text for one in resembling([[text] for text in texts], heldout)}
    assert near <= wanted and len(near) >= 0.95 * len(wanted) > 50


def test_thousands_of_prompts_of_one_template_take_no_time_of_their_square() -> None:
    began = time.process_time()
    texts = [[f"Write one line about number {i} please, and make it rhyme."] for i in range(4000)]
    texts += [[text.replace(str(i), "abcdefghij"[i % 10] * (i % 7))] for i, (text,) in enumerate(texts)]
    resembling(texts, [i % 4 == 0 for i in range(len(texts))])
    repeated([["a" * 100_000], ["\n" * 100_000], ["中" * 100_000], ["a" * 100_000]])
    assert time.process_time() - began < 6


def user(text: str) -> list[Message]:
    return [Message(role="user", content=text)]


def test_they_are_named_with_where_they_stand_and_with_what_happens_to_them() -> None:
    split = next(
        s
        for i in range(100)
        if is_heldout(user(TEXT), s := SplitConfig(salt=str(i))) and not is_heldout(user(TEXT + "!"), s)
    )
    places = {TEXT: "a.jsonl:1", TEXT + "!": "b.jsonl:7", "How do I sharpen a knife?": "a.jsonl:2"}
    said = across_split(places, split)
    assert said is not None and said.startswith("1 prompts that may be trained on")
    assert "b.jsonl:7 is like a.jsonl:1 (100%)" in said and "they train nothing" in said
    keeping = split.model_copy(update={"near_duplicates": "keep"})
    assert "an easy exam" in str(across_split(places, keeping))
    beyond = "looked for here among the first 3 questions, and not among those of 9 further dialogues"
    assert str(across_split(places, split, 9)).startswith(said) and beyond in str(across_split(places, split, 9))
    del places[TEXT + "!"]
    assert across_split(places, split) is None

    dialogues = [user(TEXT), user("How?"), user(TEXT + "!"), [Message(role="system", content="S"), *user(TEXT + "!")]]
    rows = [
        Prompt(prompt=messages).model_copy(update={"where": where})
        for messages, where in zip(dialogues, ["a:1", "a:2", "b:1", "b:2"], strict=True)
    ]
    near = near_heldout(rows, split)
    assert {index: (one.where, one.like, one.alike) for index, one in near.items()} == {
        2: ("b:1", "a:1", 1.0),
        3: ("b:2", "a:1", 1.0),
    }
    assert near_heldout(rows, keeping) == {}


def test_the_shingles_of_many_texts_are_those_of_each() -> None:
    """Against a second form, in whole numbers."""

    def hashes(text: str, part: int) -> list[int]:
        runs = [text[i : i + 5] for i in range(max(len(text) - 4, min(len(text), 1)))]
        values = []
        for run in runs:
            value = part
            for character in run:
                value = (value + ord(character)) * 0x9E3779B97F4A7C15 % 2**64
                value ^= value >> 29
            values.append(value)
        return values

    draw = random.Random(0)
    texts = [
        ["".join(draw.choices("ab ü面🙂", k=draw.choice([0, 1, 4, 5, 6, 30]))) for _ in range(2)] for _ in range(60)
    ]
    flat, ends = shingles_of_all(texts)
    expected = [[one for part, text in enumerate(parts) for one in hashes(text, part)] for parts in texts]
    assert [flat[a:b].tolist() for a, b in pairwise(ends)] == expected
    assert [len(one) for one in shingles_of_all([])] == [0, 1]

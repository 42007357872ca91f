"""Rows of training that share words in a row with an exam: those that a search without hashes would find."""

from __future__ import annotations

import random
import string

from hypothesis import example, given
from hypothesis import strategies as st

from trueup.data.duplicates.contamination import LEAST, OWN, PHRASE, WORDS, shared_with
from trueup.data.words import normal, words

EXAM = (
    "A baker sells forty loaves on Monday and twice as many on Tuesday, and she throws five stale ones away; how many "
    "loaves did she bake in these two days, if none was left on the shelf?"
)
SHORT = "Why is the sky blue at noon?"
OTHER = "Tell me how to sharpen a kitchen knife without a stone, please, and how often I ought to do it."


def rows_of(exams: list[str], rows: list[list[str]]) -> list[tuple[int, int]]:
    return [(one.row, one.text) for one in shared_with(exams, rows).shared]


def test_a_row_is_found_whose_question_answer_or_later_turn_has_the_words() -> None:
    middle = " ".join(EXAM.split()[3:20])
    rows = [
        [EXAM, "125"],
        ["How do I bake?", f"Listen: {middle}. That was it."],
        ["Hi", "Hello!", f"And now: {EXAM}", "125"],
        [EXAM.upper().replace(",", " -"), "125"],
        [OTHER, "With a mug."],
        [" ".join(EXAM.split()[:7]), " ".join(EXAM.split()[7:14])],
        [f"{SHORT}!", "Light scatters."],
        [f"{OTHER} {SHORT}", "Light scatters."],
    ]
    assert rows_of([SHORT, EXAM], rows) == [(0, 1), (1, 1), (2, 1), (3, 1), (6, 0)]
    assert shared_with([EXAM], rows).shared[1].words == " ".join(words(middle)[:WORDS])
    assert rows_of([], rows) == rows_of(["Hi", "?"], rows) == rows_of([EXAM], []) == []


def test_a_phrase_of_many_rows_is_none_but_whoever_has_all_of_a_text_has_the_text() -> None:
    form = "Read what follows with care and then say in one short sentence what the writer of it wants: "
    rows = [[f"{form}{OTHER} {number}", "So."] for number in map(str, range(PHRASE + 2))]
    exam = f"{form}Could you lend me your bicycle until the end of the week, since mine was stolen?"
    found = shared_with([exam], rows)
    assert found.shared == [] and found.phrases == len(rows)
    few = shared_with([exam], rows[:PHRASE])
    assert len(few.shared) == PHRASE and few.phrases == 0
    begins_alike = [[f"{form}Could you {word}?", "So."] for word in ("go", "lend", "lend me", "lend me your bicycle")]
    assert rows_of([exam], [*rows, *begins_alike]) == [], "a phrase and few words more"
    assert rows_of([exam], [*rows, *begins_alike, ["Hi", exam.lower()]]) == [(len(rows) + 4, 0)]
    copies = [*rows, *([f"{exam} {letter}", letter] for letter in string.ascii_letters)]
    assert rows_of([exam], copies) == [(len(rows) + n, 0) for n in range(len(string.ascii_letters))]


def test_planted_texts_are_found_among_many_and_no_others() -> None:
    rng = random.Random(0)
    vocabulary = ["".join(rng.choices(string.ascii_lowercase, k=5)) for _ in range(300)]

    def text(count: int) -> str:
        return " ".join(rng.choices(vocabulary, k=count))

    exams = [text(rng.randint(5, 60)) for _ in range(200)]
    rows, planted = [], set()
    for number in range(3000):
        turns = [text(rng.randint(1, 80)) for _ in range(4)]
        if rng.random() < 0.1:
            exam = words(rng.choice(exams))
            length = WORDS if len(exam) >= WORDS else len(exam)
            begin = rng.randrange(len(exam) - length + 1)
            said = " ".join(exam[begin : begin + length])
            turns[rng.randrange(4)] = said if length < WORDS else f"{text(3)} {said}, {text(3)}"
            planted.add(number)
        rows.append(turns)
    assert {one.row for one in shared_with(exams, rows).shared} == planted


def test_the_form_of_a_small_set_is_a_phrase_though_few_rows_have_it() -> None:
    form = "Please answer the question below in one short sentence that a child of seven would understand: what is"
    asked = [f"{form} {number}?" for number in range(20)]
    found = shared_with(asked[:12], [[one, "It is."] for one in asked[12:]])
    assert found.shared == [] and found.phrases == 8


def test_an_instruction_shorter_than_the_words_in_a_row_is_a_phrase_too() -> None:
    asked = [
        f"Output whether the sentiment of the sentence is positive or negative: a film of {n} and {n + 1}"
        for n in range(60)
    ]
    found = shared_with(asked[:20], [[one, "positive"] for one in asked[20:]])
    assert found.shared == [] and found.phrases == 40


def test_a_short_text_that_many_turns_are_is_a_phrase() -> None:
    more = "Can you explain that in more detail?"
    rows = [[f"Why is {n} odd?", "So.", more, "Well."] for n in range(PHRASE + 1)]
    assert shared_with([more], rows) == ([], len(rows))
    assert len(shared_with([more], rows[:PHRASE]).shared) == PHRASE
    opened = [[more, f"Because {n}."] for n in range(PHRASE + 5)]
    assert len(shared_with([more], opened).shared) == len(opened), "a check that many rows ask is leaked by them all"


def by_sets(exams: list[str], rows: list[list[str]]) -> set[int]:
    """The same without hashes, of a few rows."""

    def runs(said: list[str], length: int = WORDS) -> set[tuple[str, ...]]:
        return {tuple(said[i : i + length]) for i in range(len(said) - length + 1)}

    texts = [words(normal(exam)) for exam in exams]
    turns = [[words(normal(turn)) for turn in row] for row in rows]
    long_texts = [list(exam) for exam in set(map(tuple, texts)) if len(exam) >= WORDS]
    having = [set().union(*(runs(turn, OWN) for turn in row)) for row in turns]
    having += [runs(exam, OWN) for exam in long_texts]
    phrases = {run for run in set().union(*having) if sum(run in one for one in having) - 1 > PHRASE}
    best: dict[tuple[str, ...], int] = {}
    for exam in long_texts:
        for run, count in own(exam, phrases):
            best[run] = max(count, best.get(run, 0))
    found = set()
    for n, row in enumerate(turns):
        has = set().union(*map(runs, row))
        for exam in texts:
            rare = any(best[run] >= OWN for run in runs(exam) & has)
            whole = bool(runs(exam)) and runs(exam) <= has
            many = [exam] != row[:1] and len(exam) < WORDS and sum(exam in other for other in turns) > PHRASE
            if rare or whole or (len(exam) >= LEAST and exam in row and not many):
                found.add(n)
    return found


def own(exam: list[str], phrases: set[tuple[str, ...]]) -> list[tuple[tuple[str, ...], int]]:
    """Each run of a text, with how many of its words are of no phrase."""
    covered = {i + k for i in range(len(exam) - OWN + 1) if tuple(exam[i : i + OWN]) in phrases for k in range(OWN)}
    places = range(len(exam) - WORDS + 1)
    return [(tuple(exam[i : i + WORDS]), sum(i + k not in covered for k in range(WORDS))) for i in places]


SAID = st.lists(st.sampled_from("a b c, D é 中 12 -".split()), max_size=30).map(" ".join)


@given(st.lists(SAID, max_size=4), st.lists(st.lists(SAID, max_size=3), max_size=30))
@example(["a " * 13 + "b c d é 中 12"], [["a " * 13 + "b c d é 中 12"[: 2 * n]] for n in range(11)])
@example(["a " * 40], [["a " * 13], ["a " * 12, "a"], ["A, a! " * 7]])
def test_what_is_found_is_what_sets_of_words_find(exams: list[str], rows: list[list[str]]) -> None:
    assert {one.row for one in shared_with(exams, rows).shared} == by_sets(exams, rows)

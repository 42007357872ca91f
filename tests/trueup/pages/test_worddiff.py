"""What differs between two answers, word by word."""

from __future__ import annotations

import random
import time

import pytest
from markupsafe import Markup

from trueup.pages.worddiff import MAX_WORDS, marked, word_diff


def test_words_of_one_text_alone_are_marked_in_runs_and_white_space_stays_outside() -> None:
    made = marked("the cat sat on the mat\n\nand slept", "the dog sat on a mat\n\nand slept well today")
    assert made == (
        "the <del>cat</del> sat on <del>the</del> mat\n\nand slept",
        "the <ins>dog</ins> sat on <ins>a</ins> mat\n\nand slept <ins>well today</ins>",
    )


def test_the_same_text_has_no_mark() -> None:
    assert marked("one  two\tthree ", "one  two\tthree ") == ("one  two\tthree ", "one  two\tthree ")
    assert marked("", "") == ("", "")


def test_markup_in_a_text_is_text_inside_marks_and_outside() -> None:
    before, after = marked("a b c <i>d</i>", "a b c <script>e</script>") or ("", "")
    assert before == "a b c <del>&lt;i&gt;d&lt;/i&gt;</del>"
    assert after == "a b c <ins>&lt;script&gt;e&lt;/script&gt;</ins>"


def test_without_its_marks_a_text_is_as_it_was() -> None:
    draw = random.Random(0)
    for _ in range(50):
        a, b = (" ".join(draw.choices(["x", "y\n", "z", "&"], k=draw.randrange(30))) for _ in range(2))
        made = marked(a, b)
        assert made is None or (made[0].striptags(), made[1].striptags()) == (" ".join(a.split()), " ".join(b.split()))


def test_texts_with_hardly_a_word_in_common_are_not_marked_at_all() -> None:
    assert marked("one two three four five", "six seven eight nine five") is None


@pytest.mark.parametrize("longer", [0, 1])
def test_texts_that_are_too_long_to_compare_are_not(longer: int) -> None:
    texts = ["word " * (MAX_WORDS + 1), "three other words"]
    assert word_diff(texts[longer], texts[1 - longer]) is None and marked(*texts) is None


def test_a_word_that_moved_is_shared_only_where_the_order_holds() -> None:
    assert word_diff("a b c", "c a b") == ([True, True, False], [False, True, True])


def test_a_script_without_blanks_is_compared_character_by_character() -> None:
    found = marked("面包放在冰箱里变硬", "面包放在室温下变硬")
    assert found == (Markup("面包放在<del>冰箱里</del>变硬"), Markup("面包放在<ins>室温下</ins>变硬"))
    assert marked("a\u202eb c", "a\u202eb d") is not None and "\u202e" not in str(marked("a\u202eb c", "a\u202eb d"))


@pytest.mark.parametrize("unit", ["a b ", "a a b ", "中", "中文", "ก", "a ", "\u0301", "a\u200b "])
def test_no_two_texts_take_long_to_compare(unit: str) -> None:
    text = unit * (12_000 // len(unit))
    began = time.process_time()
    for a in (text, (unit * 999)[:3000], (unit * 333)[:990]):
        for b in (a[::-1], a[1:] + "x", a.replace(unit, unit[::-1] + unit, 50)):
            marked(a, b)
    assert time.process_time() - began < 4

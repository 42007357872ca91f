"""Prompts that are nearly the same on both sides of the split are reported, with where they stand."""

from __future__ import annotations

import random
import time

from trueup.config import SplitConfig
from trueup.data.near_duplicates import across_split, near_duplicates
from trueup.data.records import Message
from trueup.data.split import is_heldout

TEXT = "Why does bread go stale faster in the fridge than on the kitchen counter, and how do I keep it fresh?"


def test_what_differs_in_a_word_or_in_punctuation_is_nearly_the_same_and_what_differs_in_sense_is_not() -> None:
    others = [
        TEXT.upper().replace(",", ""),
        TEXT.replace("fresh", "soft"),
        f"Please: {TEXT}",
        TEXT[:40],
        TEXT[::-1],
        "",
    ]
    found = near_duplicates([TEXT, "How do I sharpen a knife?"], others)
    assert [(one.heldout, one.train) for one in found] == [(0, 0), (1, 0), (2, 0)]
    assert found[0].alike == 1.0 > found[1].alike > 0.8
    assert near_duplicates(["面包为什么在冰箱里更快变硬"], ["面包为什么在冰箱里更快变硬呢", "刀怎么磨"])[0].heldout == 0
    assert near_duplicates([], [TEXT]) == [] == near_duplicates([TEXT], [])
    assert near_duplicates(["", "!?"], ["", "..."]) == [], "texts without words say nothing"


def test_resemblance_is_found_as_comparing_all_pairs_would() -> None:
    rng = random.Random(0)
    vocabulary = [f"word{i}" for i in range(60)]
    train = [" ".join(rng.choices(vocabulary, k=30)) for _ in range(50)]
    heldout = []
    for text in train:
        said = text.split()
        for _ in range(rng.randrange(6)):
            said[rng.randrange(30)] = rng.choice(vocabulary)
        heldout.append(" ".join(said))

    def shingles(text: str) -> set[str]:
        return {text[i : i + 5] for i in range(len(text) - 4)}

    def alike(a: str, b: str) -> float:
        return len(shingles(a) & shingles(b)) / len(shingles(a) | shingles(b))

    wanted = {i for i, text in enumerate(heldout) if max(alike(text, other) for other in train) >= 0.8}
    found = near_duplicates(train, heldout)
    assert 10 < len(wanted) < 50 and {one.heldout for one in found} == wanted
    for one in found:
        assert abs(one.alike - alike(heldout[one.heldout], train[one.train])) < 1e-9


def test_thousands_of_prompts_of_one_template_take_no_time_of_their_square() -> None:
    began = time.process_time()
    near_duplicates(
        [f"Write one line about number {i} please." for i in range(4000)], [f"Line {i}" for i in range(2000)]
    )
    near_duplicates(["a" * 100_000, "\n" * 100_000, "中" * 100_000], ["a" * 100_000])
    assert time.process_time() - began < 6


def test_they_are_named_with_where_they_stand() -> None:
    def side(text: str, split: SplitConfig) -> bool:
        return is_heldout([Message(role="user", content=text)], split)

    split = next(s for i in range(100) if side(TEXT, s := SplitConfig(salt=str(i))) and not side(TEXT + "!", s))
    said = across_split({TEXT: "a.jsonl:1", TEXT + "!": "b.jsonl:7", "How do I sharpen a knife?": "a.jsonl:2"}, split)
    assert said is not None and "a.jsonl:1 is like b.jsonl:7 (100%)" in said and said.startswith("1 of ")
    assert across_split({TEXT: "a.jsonl:1", "How do I sharpen a knife?": "a.jsonl:2"}, split) is None

"""Rows that may be trained on and are left out, since they nearly repeat a held-out prompt or an earlier row.

The split stays a hash, so that every stage agrees on it without talking: none needs to know which prompts of others
resemble each other. What is held out stays so; of what may be trained on, a stage leaves out the rows that nearly
repeat a held-out prompt. So no paraphrase of an exam is learnt, and new rows move no prompt to the other side.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from trueup.config import SplitConfig
from trueup.data.duplicates.near import Near, repeated, resembling
from trueup.data.duplicates.rows import NEAR_HELDOUT, NEAR_TRAINED, REPEATED, NearDuplicate, examples, near_duplicate
from trueup.data.records import Demonstration, Message, Prompt, PromptRow, read_jsonl
from trueup.data.split import is_heldout, question

MOST_COMPARED = 1_000_000
"""Rows among which near-duplicates are looked for: what is compared of each takes about 0.4 KiB of memory."""
_AT_ONCE = 100_000
"""Questions that were trained on and are compared together."""


def too_many(rows: int, what: str) -> str | None:
    """The sentence that near-duplicates are not looked for among so many rows; None if they are."""
    if rows <= MOST_COMPARED:
        return None
    return (
        f"near-duplicates are not looked for among {rows} {what}: of more than {MOST_COMPARED}, memory may not hold "
        "what is compared of each; take fewer with max_rows if that is to be done"
    )


def near_heldout(rows: Sequence[Demonstration | Prompt | PromptRow], split: SplitConfig) -> dict[int, NearDuplicate]:
    """The rows that may be trained on and begin nearly like a held-out one, by their index; none if the split keeps
    them."""
    return near_heldout_questions((question(_messages(row)) for row in rows), lambda index: rows[index].where, split)


def near_heldout_questions(
    asked: Iterable[str], place: Callable[[int], str], split: SplitConfig
) -> dict[int, NearDuplicate]:
    """The same of rows by their questions.

    place  of a row by its index, file and line
    """
    if split.near_duplicates == "keep":
        return {}
    firsts: dict[str, int] = {}
    numbers = array("q")  # of the question of each row, among those that differ
    begins = array("q")
    for index, text in enumerate(asked):
        number = firsts.setdefault(text, len(firsts))
        numbers.append(number)
        if number == len(begins):
            begins.append(index)
    questions = list(firsts)
    del firsts
    near = {one.text: one for one in _near(questions, split)}
    found = {}
    for index, number in enumerate(numbers):
        if (one := near.get(number)) is not None:
            where, like = place(index), place(begins[one.like])
            found[index] = near_duplicate(NEAR_HELDOUT, where, questions[number], like, questions[one.like], one.alike)
    return found


def _messages(row: Demonstration | Prompt | PromptRow) -> list[Message]:
    return row.messages if isinstance(row, Demonstration) else row.prompt


def near_heldout_prompts(rows: Mapping[str, Prompt | PromptRow], split: SplitConfig) -> dict[str, NearDuplicate]:
    """The same of prompts by their ids."""
    prompts = list(rows)
    return {prompts[index]: one for index, one in near_heldout(list(rows.values()), split).items()}


def repeated_demonstrations(rows: Sequence[Demonstration]) -> dict[int, NearDuplicate]:
    """The demonstrations that nearly repeat an earlier one, by their index: what is asked resembles, and what is
    answered does."""
    found = {}
    for one in repeated(_Texts(rows)):
        row, like = rows[one.text], rows[one.like]
        texts = question(row.messages), question(like.messages)
        found[one.text] = near_duplicate(REPEATED, row.where, texts[0], like.where, texts[1], one.alike)
    return found


class _Texts(Sequence[list[str]]):
    """What is asked and what is answered in demonstrations, which may lie on disk."""

    def __init__(self, rows: Sequence[Demonstration]):
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        messages = self._rows[index].messages
        return [
            "\n".join(message.said for message in messages if (message.role == "assistant") is answers)
            for answers in (False, True)
        ]


def like_trained(
    prompts: Sequence[list[Message]], places: Sequence[str], trained: Sequence[Path]
) -> dict[int, NearDuplicate]:
    """The prompts that are nearly the same as a question that was trained on, by their index.

    places   of the prompts, file and line
    trained  files of questions; they are read in parts, since the prompts are few and the questions may be many
    """
    asked = [question(messages) for messages in prompts]
    found: dict[int, NearDuplicate] = {}
    for path in trained:
        rows = read_jsonl(path)
        while part := list(islice(rows, _AT_ONCE)):
            texts = [[str(values["question"])] for _, values in part]
            sides = [False] * len(asked) + [True] * len(texts)
            for one in resembling([[text] for text in asked] + texts, sides):
                number, values = part[one.like - len(asked)]
                like, text = f"{path}:{number}", str(values["question"])
                row = near_duplicate(NEAR_TRAINED, places[one.text], asked[one.text], like, text, one.alike)
                found.setdefault(one.text, row)
    return found


def across_split(places: Mapping[str, str], split: SplitConfig, not_placed: int = 0) -> str | None:
    """What is said of dialogues that may be trained on and begin nearly like a held-out one; None: there is none.

    places      of each first question of a dialogue where it stands, file and line
    not_placed  dialogues with further questions, among which none is looked for
    """
    questions, where = list(places), list(places.values())
    heldout = sum(_is_heldout(text, split) for text in questions)
    near = [
        near_duplicate(NEAR_HELDOUT, where[one.text], "", where[one.like], "", one.alike)
        for one in _near(questions, split)
    ]
    sentences = [sentence(near, heldout, split)] if near else []
    if not_placed:
        sentences.append(
            f"near-duplicates were looked for here among the first {len(places)} questions, and not among those of "
            f"{not_placed} further dialogues"
        )
    return "; ".join(sentences) or None


def sentence(near: Sequence[NearDuplicate], heldout: int, split: SplitConfig) -> str:
    """What is said of prompts that are nearly the same as a held-out one."""
    if split.near_duplicates == "drop":
        what = "so they train nothing, or no comparison asks these (split.near_duplicates: drop)"
    else:
        what = "which makes these an easy exam (split.near_duplicates: keep)"
    many = f"{len(near)} prompts that may be trained on are nearly the same as one of {heldout} that are held out"
    return f"{many}, {what}: {examples(near)}"


def _near(questions: Sequence[str], split: SplitConfig) -> list[Near]:
    return resembling(_Alone(questions), [_is_heldout(text, split) for text in questions])


class _Alone(Sequence[list[str]]):
    """Texts of one part."""

    def __init__(self, texts: Sequence[str]):
        self._texts = texts

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index: Any) -> Any:
        return [self._texts[index]]


def _is_heldout(question: str, split: SplitConfig) -> bool:
    return is_heldout([Message(role="user", content=question)], split)

"""What becomes of the columns that no converter reads, by what their names are known to mean (`vocabulary`).

    honoured     SYSTEM and HISTORY come before the conversation; LABELS, WEIGHTS, EXCLUDED and KEPT say that a row, or
                 an assistant turn, is not to be imitated
    refused      tools, images, reasoning and whatever else Trueup cannot give to a model, if it holds something;
                 a second question, context or answer that says other things than the conversation does; and a mark
                 against a row (MARKED, SPLITS) of which nobody can know what is to follow from it
    ignored      everything else, counted by name: `Ledger.ignored`; so is what the user names in `ignore_columns`

An empty value (null, "", [], {}, false, 0, or JSON text of these) says nothing, whatever its column, but for flags.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal

from trueup.data.formats import vocabulary
from trueup.data.formats.columns import Columns, Ledger
from trueup.data.formats.vocabulary import (
    IGNORE,
    canonical,
    flag,
    is_choice,
    is_reasoning,
    is_related,
    mark_against,
    says_nothing,
    truth,
)
from trueup.data.jsonl import cut, excerpt

Use = Literal["demonstrations", "prompts", "preferences"]

# ---- Rows and turns that count no more --------------------------------------------------------------------------


def why_left_out(row: Columns, use: Use) -> str | None:
    """The reason for which a sound row is not to be used, from the columns that say so; None: it is."""
    if reason := why_taken_out(row):
        return reason
    if use != "prompts":
        if row.carries_loss(of_a_row=True) is False:
            return "weight 0 or train: false"
        row.refuse_unclear_weights(of_a_row=True)
    return why_bad(row) if use == "demonstrations" else None


def why_taken_out(row: Columns) -> str | None:
    """Why a row, or a turn, counts no more: somebody deleted or rejected it."""
    for name, value in row.values.items():
        meaning = flag(name)
        if meaning is None or meaning.kind != "out" or name in row.names_read:
            continue
        yes = truth(value) if name not in vocabulary.SIDES_TOO or isinstance(value, bool) else None
        if yes is not None:
            row.names_read.add(name)
        if yes is meaning.when:
            return f"{name}: {str(yes).lower()}"
    for name in vocabulary.STATES:
        if isinstance(value := row.values.get(name), str):
            state = value.strip().lower()
            if any(state == out or state.startswith(f"{out}_") for out in vocabulary.OUT):
                row.names_read.add(name)
                return f"{name}: {cut(state, 40)}"
    return None


def why_bad(row: Columns) -> str | None:
    """Why the answer of a row is none to imitate."""
    for name, value in row.values.items():
        meaning = flag(name)
        if (
            not (name in vocabulary.LABELS or (meaning and meaning.kind == "bad"))
            or name in row.names_read
            or value is None
        ):
            continue
        bad = meaning.when if meaning and meaning.kind == "bad" else False
        is_class = name == "label" and isinstance(value, str) and value.strip().lower() in vocabulary.CLASSES
        yes = None if is_class else truth(value, words=name in vocabulary.LABELS)
        if name == "label" and yes is not None and not isinstance(value, bool | str):
            raise ValueError(
                f"{row.at(name)}: {excerpt(value)} may say that the answer is good or bad, or name a class; write true "
                f"or false, or {IGNORE}"
            )
        if yes is not None:
            row.names_read.add(name)
            if yes is bad:
                return f"{name}: {str(yes).lower()}"
    return "answer that was cut (truncated, or finish_reason: length)" if _is_cut(row) else None


def _is_cut(row: Columns) -> bool:
    flags = [
        name
        for name in (*vocabulary.CUT, *vocabulary.WHOLE)
        if name in row.values and name not in row.names_read and truth(row.values[name]) is not None
    ]
    row.names_read.update(flags)
    stop_reasons = [str(row.values[name]).strip().lower() for name in vocabulary.STOPS if name in row.values]
    cut_off = any(truth(row.values[name]) is (name in vocabulary.CUT) for name in flags)
    return cut_off or not vocabulary.AT_THE_LIMIT.isdisjoint(stop_reasons)


def is_marked(turn: Columns) -> bool:
    """Whether an assistant turn has a mark against it; it is then read, and carries no loss."""
    marks = [name for name, value in turn.values.items() if name not in turn.names_read and mark_against(name, value)]
    turn.names_read.update(marks)
    return bool(marks)


# ---- Columns that nobody read ----------------------------------------------------------------------------------


def _refuse_mark(row: Columns, name: str, value: Any, use: Use) -> None:
    """Raise for a mark against a row. Of a prompt neither the split nor what its answer was is of matter."""
    meaning = flag(name)
    of_no_matter = use == "prompts" and (
        name in (*vocabulary.SPLITS, *vocabulary.JUDGED, *vocabulary.LABELS) or (meaning and meaning.kind == "bad")
    )
    if not of_no_matter and mark_against(name, value):
        raise ValueError(
            f"{row.at(name)}: holds {excerpt(value, 40)}, which may say that the row is not to be used; take such rows "
            f"out, or {IGNORE}"
        )


def settle(ledger: Ledger, conversation_texts: list[str], use: Use) -> None:
    """Refuse what was not read and changes the meaning of the conversation; count the rest as ignored."""
    for columns in ledger.objects:
        columns.refuse_unsupported()
        for name, value in columns.values.items():
            if name in columns.names_read or says_nothing(value):
                continue
            if "[]" not in columns.group:  # of a message, whose keys are settled where it is read
                _refuse_mark(columns, name, value, use)
                _refuse_other_text(columns, name, value, conversation_texts, use)
                if use == "demonstrations":
                    refuse_reasoning(columns, name, value, conversation_texts)
            ledger.ignored.add(cut(columns.group + name, 60))


def refuse_reasoning(row: Columns, name: str, value: Any, conversation_texts: list[str]) -> None:
    """Raise for what was thought before an answer, and is not written in it."""
    if not is_reasoning(name) or isinstance(value, bool | int | float) or vocabulary.is_switch(value):
        return
    if not _stands_in(value, conversation_texts):
        raise ValueError(
            f"{row.at(name)}: holds what was thought before the answer, which is not trained; write it into the answer "
            f"as the model is to say it, or {IGNORE}"
        )


def _refuse_other_text(row: Columns, name: str, value: Any, conversation_texts: list[str], use: Use) -> None:
    is_target = use == "demonstrations" and name in vocabulary.TARGETS
    is_prompt_part = is_related(name)
    if row.names_read.isdisjoint(vocabulary.CONVERSATIONS):
        of_it = vocabulary.OF_A_QUESTION.search(name) or (use == "demonstrations" and name in vocabulary.OF_AN_ANSWER)
        is_prompt_part = is_prompt_part or bool(of_it and any(map(_is_prose, _texts(value))))
    if not (name in vocabulary.PROMPT_PARTS or is_target or is_prompt_part or is_choice(name)) or isinstance(
        value, bool | int | float
    ):
        return
    refuse_other_text(row, name, value, conversation_texts)


def _is_prose(text: str) -> bool:
    """Whether a text is words, and no identifier, address or number."""
    text = text.strip()
    return bool(text) and (" " in text or not re.search(r"[\W\d_]", text))


def refuse_other_text(row: Columns, name: str, value: Any, conversation_texts: list[str]) -> None:
    """Raise for a text that stands beside a conversation, and not in it."""
    if not _stands_in(value, conversation_texts):
        raise ValueError(
            f"{row.at(name)}: holds {excerpt(value, 40)}, which the other columns do not say; join it to the text that "
            f"it belongs to, or {IGNORE}"
        )


def _stands_in(value: Any, conversation_texts: list[str]) -> bool:
    """Whether each text of a value is a part of the conversation, or the whole conversation a part of the value."""
    texts = [" ".join(text.split()) for text in _texts(value)]
    plain_texts = [" ".join(text.split()) for text in conversation_texts]
    whole = " ".join(plain_texts)
    if all(_is_part(text, whole) for text in texts):
        return True
    # A template may stand between a question and what is given with it, which are paragraphs here.
    parts = [" ".join(part.split()) for text in conversation_texts for part in text.split("\n\n")]
    parts = [part for part in parts if part]  # a turn that only calls a tool says nothing
    return len(texts) == 1 and bool(parts) and all(part in texts[0] for part in parts)


def _is_part(text: str, whole: str) -> bool:
    """Whether a text stands in another, and not within a word."""
    start = whole.find(text)
    while start >= 0:
        around = whole[max(0, start - 1) : start] + whole[start + len(text) : start + len(text) + 1]
        if not any(character.isascii() and character.isalnum() for character in around):
            return True
        start = whole.find(text, start + 1)
    return False


def _texts(value: Any) -> Iterator[str]:
    """The texts in a value: of messages what they say, not who says it."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)
    elif isinstance(value, dict):
        text_keys = [key for key in value if canonical(key) in ("content", "value", "text")]
        for key in text_keys or value:
            yield from _texts(value[key])

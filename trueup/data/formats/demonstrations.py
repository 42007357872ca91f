"""Converters of rows that say what is to be imitated, or only what is asked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from trueup.data.containers.reading import read_entries
from trueup.data.formats import oasst, vocabulary
from trueup.data.formats.columns import Columns, Values
from trueup.data.formats.format import Format, Skipped, any_of, is_own
from trueup.data.formats.preferences import PREFERENCES, read_pair
from trueup.data.formats.rendered import turns_of_rendered
from trueup.data.formats.turns import (
    continues_hh,
    is_plain_answer,
    prompt_of,
    question,
    read_choices,
    say,
    turns,
    turns_of_text,
    utterances,
    with_preface,
    without_answer_mark,
)
from trueup.data.formats.verdicts import tie_of_pair, whole
from trueup.data.jsonl import cut, excerpt
from trueup.data.records import Row, parse_row
from trueup.data.tools import read_calls
from trueup.provenance.inputs import companion_of

# ---- Demonstrations ---------------------------------------------------------------------------------------------


def _conversation(row: Columns, path: Path) -> list[Values]:
    name = row.first(vocabulary.CONVERSATIONS)
    assert name is not None
    return [{"messages": with_preface(row, turns(row, name))}]


def _question_and_answer(row: Columns, path: Path) -> list[Values]:
    """The answer to a prompt. It alone is the completion: answers within the column that asks carry no loss."""
    prompt = prompt_of(row)
    completion = _answer(row, prompt)
    earlier = [turn for turn in prompt if turn["role"] == "assistant"]
    if earlier and row.held(vocabulary.QUESTIONS):
        asked = utterances(question(row))
        for turn in earlier:
            turn |= {"trained": False} if utterances([turn])[0] in asked else {}
    return [{"messages": prompt + completion}]


def _answer(row: Columns, prompt: list[Values]) -> list[Values]:
    name = row.first(vocabulary.ANSWERS)
    if name is None or (not row.holds(name) and any(row.holds(other) for other in vocabulary.REFERENCES)):
        name = row.first(vocabulary.REFERENCES)
    assert name is not None
    value = row.get(name)
    place = whole(value)
    if place is not None and (letters := [letter for letter, _ in read_choices(row)]):
        if not 0 <= place < len(letters):
            raise ValueError(f"{row.at(name)}: expected a number of 0 to {len(letters) - 1}, found {value}")
        return [say("assistant", letters[place])]
    if is_plain_answer(row, name):
        letters = [letter for letter, _ in read_choices(row)] if value.strip().isdigit() else []
        if letters and value.strip() not in letters and value not in [text for _, text in read_choices(row)]:
            choices = next((row.at(one) for one in vocabulary.CHOICES if row.holds(one)), "the choices")
            raise ValueError(
                f"{row.at(name)}: {excerpt(value)} is text, and {choices} have letters: write the letter, or a number "
                "that counts from 0"
            )
        return [say("assistant", value.strip() if continues_hh(row) else value)]
    messages = turns(row, name, "assistant")
    return messages[len(prompt) :] if messages[: len(prompt)] == prompt else messages


def _calls(row: Columns, path: Path) -> list[Values]:
    """A question that is answered by calls of tools alone, as in xLAM."""
    calls = read_calls(row.get("answers"), row.at("answers"))
    return [{"messages": [*prompt_of(row), say("assistant", "") | {"tool_calls": calls}]}]


def _self_instruct(row: Columns, path: Path) -> Iterator[Values]:
    for instance in row.objects("instances"):
        context = instance.take("input", str) if instance.holds("input") else ""
        instance.names_read.add("input")
        parts = [row.take("instruction", str), context]
        task = say("user", "\n\n".join(part for part in parts if part.strip()))
        yield {"messages": with_preface(row, [task, say("assistant", instance.take("output", str))])}


class _Annotations(Row):
    annotations: list[str] = Field(min_length=1)


def _instruction_induction(row: Columns, path: Path) -> Iterator[Values]:
    """Inputs and outputs of one task, which the file is named for; people's instructions for it stand elsewhere."""
    file = companion_of(path)
    if file is None:
        raise ValueError(
            f"these examples need an instruction, and no folder above the file has annotations/{path.name}"
        )
    entry = next(iter(read_entries(file)), None)
    if entry is None:
        raise ValueError(f"{file}, which these examples' instruction stands in, holds no row")
    annotations = parse_row(_Annotations, entry[1], str(file)).annotations
    # Of these hand-written lines, those that begin in lower case are notes more often than instructions.
    instruction = next((text for text in annotations if text[:1].isupper()), annotations[0]).strip()
    for number, example in row.take("examples", dict).items():
        within = f"examples.{cut(number, 20)}"
        if not isinstance(example, dict) or not {"input", "output"} <= example.keys():
            raise ValueError(f"{within}: expected input and output, found {excerpt(example)}")
        one = Columns({"instruction": instruction, **example}, row.ledger, f"{within}.", "examples[].")
        yield {"messages": [*question(one), say("assistant", one.take("output", str))], "category": path.stem}


def _preferred_answer(row: Columns, path: Path) -> list[Values | Skipped]:
    """The preferred answer of a pair, and nothing of the other; of a tie neither is preferred.

    A row of Trueup's keeps an answer's reasoning beside it, with its tags: the policy wrote both, one behind the other.
    """
    row.ledger.with_tools = False  # of a pair's turns text alone is read
    prompt, answers = read_pair(row)
    if tie_of_pair(row):
        return [Skipped("tie: neither answer is preferred")]
    row.names_read |= {name for name in row.values if vocabulary.is_reasoning(name) and vocabulary.is_rejected(name)}
    reasoning = (row.get("chosen_reasoning") or "") if is_own(row) else ""
    return [{"messages": [*prompt, say("assistant", reasoning + answers[0])]}]


def _text(row: Columns, path: Path) -> list[Values]:
    """A conversation in one text, with the marks of HH, ChatML or Guanaco, or of a template of `rendered`."""
    text = row.take("text", str)
    messages = turns_of_rendered(text, row.at("text")) or turns_of_text(text, row.at("text"))
    if messages is None:
        raise ValueError(
            f"{row.at('text')}: plain text says neither who asks nor who answers; name it `prompt` to ask it, or write "
            "a row of `prompt` and `completion`, or `messages`"
        )
    return [{"messages": with_preface(row, messages)}]


def _ultrachat(row: Columns, path: Path) -> list[Values]:
    for i, one in enumerate(row.take("data", list)):
        if not isinstance(one, str) and not (isinstance(one, dict) and {"role", "from"} & one.keys()):
            raise ValueError(
                f"{row.at('data')}.{i}: expected what is said, found {excerpt(one)}; a list of rows is a file of its "
                "own"
            )
    return [{"messages": with_preface(row, turns(row, "data"))}]


# ---- Prompts ----------------------------------------------------------------------------------------------------


def _first_turn(row: Columns, path: Path) -> list[Values]:
    """Benchmarks of several turns: the first of them is asked."""
    first = row.take("turns", list)[0]
    row.values["turns"] = [first]
    if isinstance(first, dict) and not {"role", "from"} & first.keys():
        first = row.objects("turns")[0].take("content", str)
    if not isinstance(first, str):
        return [{"prompt": with_preface(row, turns(row, "turns"))}]
    return [{"prompt": with_preface(row, [say("user", first)])}]


def prompt_alone(row: Columns, path: Path) -> list[Values]:
    return [{"prompt": prompt_of(row)}]


def _plain_text(row: Columns, path: Path) -> list[Values]:
    [values] = _text(row, path)
    return [{"messages": without_answer_mark(values["messages"])}]


_QUESTION = any_of(vocabulary.QUESTIONS)

TREES = Format(
    "OASST trees", ("message_tree_id", "prompt"), oasst.convert_by(oasst.best_paths, "tree without an answer")
)
TASKS = Format("self_instruct", ("instruction", "instances"), _self_instruct)
INDUCTION = Format("instruction_induction", ("examples",), _instruction_induction)
CONVERSATION = Format("conversations", (any_of(vocabulary.CONVERSATIONS),), _conversation)


def _with_last_turn_alone(format: Format) -> Format:
    """A format whose earlier answers carry no loss where a row says so (`vocabulary.LAST_TURN_ALONE`)."""

    def convert(row: Columns, path: Path) -> Iterator[Values | Skipped]:
        alone = [vocabulary.truth(row.get(name)) for name in vocabulary.LAST_TURN_ALONE if name in row]
        for values in format.convert(row, path):
            if True in alone and not isinstance(values, Skipped):
                answers = [turn for turn in values["messages"] if turn["role"] == "assistant"]
                for turn in answers[:-1]:
                    turn["trained"] = False
            yield values

    return format._replace(convert=convert)


_FORMATS = [
    Format("the preferred of two", (any_of(vocabulary.CHOSEN), any_of(vocabulary.REJECTED)), _preferred_answer),
    CONVERSATION,
    TREES,
    TASKS,
    Format("calls", (_QUESTION, any_of(vocabulary.TOOLS), "answers"), _calls),
    Format(
        "question and answer", (_QUESTION, any_of([*vocabulary.ANSWERS, *vocabulary.REFERENCES])), _question_and_answer
    ),
    INDUCTION,
    Format("UltraChat", ("data",), _ultrachat),
    Format("laid out as text", ("text",), _text),
]
DEMONSTRATIONS = [_with_last_turn_alone(format) for format in _FORMATS]


def _prompts_of(format: Format) -> Format:
    """A format of preferences, of which the prompt is asked again."""

    def convert(row: Columns, path: Path) -> list[Values | Skipped]:
        rows = format.convert(row, path)
        return [one if isinstance(one, Skipped) else {"prompt": one["prompt"]} for one in rows]

    return format._replace(convert=convert)


PROMPTS = [
    *(
        _prompts_of(one)
        for one in PREFERENCES
        if one.name in ("Label Studio", "Argilla", "finegrained_qa", "summaries")
    ),
    CONVERSATION,
    TREES,
    TASKS,
    Format("MT-Bench, Arena-Hard", ("turns",), _first_turn),
    Format("question", (any_of([*vocabulary.QUESTIONS, "context"]),), prompt_alone),
    INDUCTION,
    *(_prompts_of(one) for one in PREFERENCES if one.name in ("SHP", "chosen and rejected", "side by side")),
    Format("UltraChat", ("data",), _ultrachat),
    Format("laid out as text", ("text",), _plain_text),
]

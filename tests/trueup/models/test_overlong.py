"""Demonstrations that are longer than `max_length`, and which tokens of a dialogue carry loss."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import templates
from trueup.data.records import Demonstration, Dropped, Message
from trueup.errors import DataError
from trueup.models.chat import IGNORED, Encoded, encode_demonstration
from trueup.models.config import TEMPLATES, ModelConfig
from trueup.models.encoding import (
    FittedDemonstration,
    Fitting,
    RefusedRows,
    encode_demonstrations,
    exchanges_of,
    fit,
    longest,
    with_loss_on,
)
from trueup.models.templates.choice import set_template

ONE_ROW = ["alpaca", "chatml", "vicuna_v1.1", "zephyr"]
FAMILIES = [*ONE_ROW, "llama2"]
"""llama2 writes the system message into the first question, and makes a training row of each turn."""
_TOKENIZERS: dict[str, Any] = {}


def of_family(name: str) -> Any:
    if name not in _TOKENIZERS:
        _TOKENIZERS[name] = templates.tiny_tokenizer((TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8"))
        set_template(_TOKENIZERS[name], ModelConfig())
    return _TOKENIZERS[name]


def dialogue(sizes: list[int], system: bool = False, untrained: tuple[int, ...] = ()) -> Demonstration:
    """Exchanges whose answers have so many words, each of which says whose it is."""
    messages = [Message(role="system", content="Be brief.")] if system else []
    for n, size in enumerate(sizes):
        messages += [
            Message(role="user", content=f"Say {n}."),
            Message(role="assistant", content=" ".join([f"la{n}"] * size), trained=n not in untrained),
        ]
    return Demonstration(messages=messages)


def last_trained_tokens(row: Encoded) -> list[int]:
    runs = [list(run) for trained, run in groupby(row.labels, key=lambda label: label != IGNORED) if trained]
    return runs[-1]


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_a_split_dialogue_keeps_every_exchange_that_fits_once_in_order_and_begins_each_part_anew(
    family: str, data: st.DataObject
) -> None:
    sizes = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=6))
    system, limit = data.draw(st.booleans()), data.draw(st.integers(60, 260))
    tokenizer, whole = of_family(family), dialogue(sizes, system)
    fitted = fit(tokenizer, whole, Fitting(limit, "split"))
    assert fitted.whole is whole
    head, exchanges = exchanges_of(whole.messages)
    kept = []
    for part, rows in fitted.parts:
        assert longest(rows) <= limit
        assert rows == encode_demonstration(tokenizer, part.messages), "the tokens are those of its own dialogue"
        part_head, part_exchanges = exchanges_of(part.messages)
        assert part_head == head and part.messages[len(head)].role == "user"
        kept += part_exchanges
    alone = [longest(encode_demonstration(tokenizer, [*head, *exchange])) <= limit for exchange in exchanges]
    if not fitted.long:
        assert kept == exchanges
        return
    assert kept == [exchange for exchange, fits in zip(exchanges, alone, strict=True) if fits]
    assert fitted.exchanges_left_out == alone.count(False)
    for (part, _), (after, _) in zip(fitted.parts, fitted.parts[1:], strict=False):
        joined = [*part.messages, *exchanges_of(after.messages)[1][0]]
        last, first = exchanges.index(part.messages[-2:]), exchanges.index(joined[-2:])
        assert first > last + 1 or longest(encode_demonstration(tokenizer, joined)) > limit, "as many as fit"


@pytest.mark.parametrize("family", ONE_ROW)
@pytest.mark.parametrize("sizes", [[60], [2, 60], [60, 2], [2, 2, 60, 2]])
def test_a_cut_dialogue_keeps_the_tokens_up_to_the_limit_and_is_left_out_if_none_of_them_is_trained(
    family: str, sizes: list[int]
) -> None:
    tokenizer, whole = of_family(family), dialogue(sizes)
    (full,) = encode_demonstration(tokenizer, whole.messages)
    first = next(i for i, label in enumerate(full.labels) if label != IGNORED)
    for limit in (first, first + 1, first + 9, len(full.input_ids) - 1, len(full.input_ids)):
        fitted = fit(tokenizer, whole, Fitting(limit, "cut"))
        if limit == first:
            assert fitted == FittedDemonstration(whole, [], long=True)
            continue
        [(part, [row])] = fitted.parts
        assert (row.input_ids, row.labels) == (full.input_ids[:limit], full.labels[:limit])
        assert fitted.tokens_cut == len(full.input_ids) - limit and fitted.long == (limit < len(full.input_ids))
        answer = tokenizer.decode(last_trained_tokens(row)).strip().removesuffix(tokenizer.eos_token)
        assert part.messages[-1].content.startswith(answer), "what is answered is the last turn that is learnt"
        if fitted.long and limit == len(full.input_ids) - 1:
            assert row.labels[-1] != tokenizer.eos_token_id, "a cut answer teaches no end of turn"


def test_the_rows_that_a_template_makes_of_each_turn_are_cut_one_by_one() -> None:
    """The template of Qwen 3 leaves reasoning out of earlier turns, so each answer is a row of its own."""
    tokenizer = templates.tiny_tokenizer(
        next(one for one in templates.shipped_templates() if one.stem == "qwen3").read_text(encoding="utf-8")
    )
    set_template(tokenizer, ModelConfig(thinking=True))
    messages = []
    for n, size in enumerate((1, 60, 1)):
        messages += [
            Message(role="user", content=f"Say {n}."),
            Message(role="assistant", content=f"<think>\n{'la ' * size}\n</think>\n\nIt is {n}."),
        ]
    rows = encode_demonstration(tokenizer, messages)
    assert len(rows) == 3
    limit = max(len(rows[0].input_ids), len(rows[2].input_ids))
    [(part, kept)] = fit(tokenizer, Demonstration(messages=messages), Fitting(limit, "cut")).parts
    assert [row.input_ids for row in kept] == [row.input_ids[:limit] for row in rows]
    assert part.messages == messages
    every = with_loss_on(rows, "all")
    assert every[0].labels == [IGNORED, *rows[0].input_ids[1:]] and every[1:] == rows[1:], "no text is learnt twice"


@pytest.mark.parametrize("family", ONE_ROW)
def test_loss_on_all_tokens_is_on_each_but_the_first(family: str) -> None:
    tokenizer = of_family(family)
    rows = encode_demonstration(tokenizer, dialogue([2, 3], system=True).messages)
    assert with_loss_on(rows, "assistant") == rows
    (row,) = with_loss_on(rows, "all")
    assert row.labels == [IGNORED, *rows[0].input_ids[1:]]


def test_a_turn_that_is_not_to_be_learnt_is_refused_where_every_token_is() -> None:
    bad = dialogue([1, 1], untrained=(0,))
    with pytest.raises(DataError, match=r"not to be learnt, and sft\.train_on: all trains every token"):
        fit(of_family("chatml"), bad, Fitting(200, train_on="all"))
    refused, dropped = RefusedRows(), Dropped()
    rows = [dialogue([1]), bad]
    kept = encode_demonstrations(rows, of_family("chatml"), Fitting(200, train_on="all"), refused, "drop", dropped)
    assert [one.whole for one in kept] == rows[:1] and dropped.counts.total() == 1


def test_a_part_without_a_turn_to_learn_is_no_dialogue() -> None:
    tokenizer = of_family("chatml")
    whole = dialogue([20, 20, 20], untrained=(0, 1))
    size = longest(encode_demonstration(tokenizer, dialogue([20]).messages))
    fitted = fit(tokenizer, whole, Fitting(size + 8, "split"))
    assert [part.messages for part, _ in fitted.parts] == [whole.messages[4:]]
    assert (fitted.exchanges_left_out, fitted.turns_left_out) == (0, 4)


@pytest.mark.parametrize("overlong", ["cut", "split"])
@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_no_turn_of_a_long_dialogue_vanishes_uncounted(family: str, overlong: Any, data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=6))
    untrained = data.draw(st.sets(st.integers(0, len(sizes) - 1), max_size=len(sizes) - 1))
    whole, limit = dialogue(sizes, untrained=tuple(untrained)), data.draw(st.integers(60, 260))
    fitted = fit(of_family(family), whole, Fitting(limit, overlong))
    if not fitted.long or not fitted.parts:
        return
    kept = sum(len(part.messages) for part, _ in fitted.parts)
    if overlong == "split":
        assert kept + 2 * fitted.exchanges_left_out + fitted.turns_left_out == len(whole.messages)
    else:
        last = max(i for i in range(len(sizes)) if i not in untrained)
        assert fitted.turns_left_out == len(whole.messages) - 2 * (last + 1), "the others are cut, or are in its part"

"""Rows of files as tokens: which rows can be encoded, and which of those fit.

A row that the chat template or the tokenizer refuses is a bad row, like one that no reader takes, and `on_bad_rows`
applies to both: `refuse` names all of them at once; `drop` leaves them out, counts them by reason and sets them aside,
unless no row remains. What becomes of a demonstration that is longer than `max_length` is `sft.overlong`:

drop   left out whole.
cut    keeps the tokens up to `max_length`. A cut answer teaches no end of turn, and what is behind is not learnt.
split  becomes several dialogues that fit, as Vicuna's recipe does (FastChat, `split_long_conversation.py`): each has
       the system message and the tools, begins with a user's turn and holds as many exchanges as fit, of which none
       parts a call from its result. An exchange that does not fit by itself is left out.

Turns that no learnt answer follows are in no part of a long dialogue; they are counted.

The stages and `trueup check` share this module. No torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, zip_longest
from typing import TYPE_CHECKING, Literal, TypeVar

from trueup.data.formats import SHOWN_PROBLEMS
from trueup.data.records import Demonstration, Dropped, FiledRow, Message
from trueup.data.row_rules import BadRows
from trueup.errors import DataError, ModelError, TrueupError
from trueup.files import Json
from trueup.models.chat import IGNORED, Encoded, blank_before, encode_demonstration
from trueup.models.templates.texts import asked_ahead

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

R = TypeVar("R", bound=FiledRow)
T = TypeVar("T")

TOO_LONG = "longer than max_length"
_AT_ONCE = 1_000_000


class RefusedRows:
    """Rows that cannot be encoded, and the changes to the others. All problems of a stage's files come at once."""

    def __init__(self) -> None:
        self.problems: dict[str, list[str]] = {}
        """The places of each problem, by its message."""
        self.template_problems: set[str] = set()
        """Messages of problems that the template causes, not a row."""
        self.changes: Counter[str] = Counter()

    def add(self, where: str, error: TrueupError) -> None:
        self.problems.setdefault(str(error), []).append(where or "a row")
        if isinstance(error, ModelError):
            self.template_problems.add(str(error))

    def take_over(self, others: RefusedRows) -> None:
        """Add the problems of other rows."""
        for text, places in others.problems.items():
            self.problems.setdefault(text, []).extend(places)
        self.template_problems |= others.template_problems

    def leave_out(self, reported: set[str]) -> None:
        """Leave out problems that were reported before, of the template or of the same row, and add the rest."""
        for text, rows in list(self.problems.items()):
            fresh = [] if text in reported else [where for where in rows if f"{where}: {text}" not in reported]
            reported |= {text} if text in self.template_problems else {f"{where}: {text}" for where in rows}
            self.problems[text] = fresh
            if not fresh:
                del self.problems[text]

    def lines(self) -> list[str]:
        """A line for each problem, with the rows that have it."""
        lines = [f"{rows[0]}: {text}{_more(rows)}" for text, rows in self.problems.items()]
        more = sum(map(len, list(self.problems.values())[SHOWN_PROBLEMS:]))
        return lines[:SHOWN_PROBLEMS] + ([f"... and {more} more rows"] if more else [])

    def stop(self) -> None:
        """If there are problems, raise them all as one DataError, or as a ModelError if the template causes them."""
        if self.problems:
            count = sum(map(len, self.problems.values()))
            head = [f"{count} rows cannot be encoded"] if count > 1 else []
            kind = ModelError if self.template_problems == self.problems.keys() else DataError
            raise kind("\n  ".join(head + self.lines()))


def named(places: Sequence[str]) -> str:
    """The places of rows, in a few words: the first by file and line, three by line, the others by their count."""
    return f"{places[0]}{_more(places)}"


def _more(places: Sequence[str]) -> str:
    """The places behind the first one; of the same file without its name."""
    if len(places) < 2:
        return ""
    file = places[0].rpartition(":")[0]
    others = ", ".join(place.removeprefix(f"{file}:").strip() for place in places[1:4])
    return f" (and in {others}{f' and {len(places) - 4} more rows' if len(places) > 4 else ''})"


def encode_rows(
    rows: Sequence[R],
    encode: Callable[[R, set[str]], T],
    refused: RefusedRows,
    on_bad_rows: BadRows = "refuse",
    dropped: Dropped | None = None,
    may_be_none: bool = False,
) -> list[tuple[R, T]]:
    """The rows of a file that can be encoded, each with the result of `encode`.

    encode       takes a row, and a set that collects the changes to its texts
    refused      collects the problems of the other rows, and the changes
    dropped      collects the other rows in place of `refused` if `on_bad_rows` is drop
    may_be_none  they are dropped even if no row remains: these rows are a part of something
    """
    bad: list[Bad] = []
    encoded = [(row, one) for _, row, one in encode_each(rows, encode, refused.changes, bad)]
    settle(bad, on_bad_rows if may_be_none or encoded else "refuse", refused, dropped)
    return encoded


Bad = tuple[FiledRow, TrueupError]
"""A row that cannot be encoded, and why."""


def encode_each(
    rows: Iterable[R], encode: Callable[[R, set[str]], T], changed: Counter[str], bad: list[Bad]
) -> Iterator[tuple[int, R, T]]:
    """The same one after the other, each with its place among the rows.

    changed, bad  collect the changes to texts, and the other rows
    """
    for index, row in enumerate(rows):
        changes: set[str] = set()
        try:
            one = encode(row, changes)
        except (DataError, ModelError) as error:
            bad.append((row, error))
            continue
        changed.update(changes)
        yield index, row, one


def settle(bad: Iterable[Bad], on_bad_rows: BadRows, refused: RefusedRows, dropped: Dropped | None) -> None:
    """Drop the rows that cannot be encoded, or refuse them."""
    for row, problem in bad:
        if on_bad_rows == "drop" and dropped is not None:
            dropped.leave_out(row.where, str(problem), row.model_dump(mode="json"))
        else:
            refused.add(row.where, problem)


# ---- Demonstrations, and those that do not fit ---------------------------------------------------------------------

Overlong = Literal["drop", "cut", "split"]
TrainOn = Literal["assistant", "all"]
Trainable = tuple[Demonstration, list[Encoded]]
"""A demonstration and its training rows (several if the template requires it)."""


@dataclass(frozen=True)
class Fitting:
    """What becomes of a demonstration: what fits, and what does not."""

    max_length: int
    overlong: Overlong = "drop"
    train_on: TrainOn = "assistant"


@dataclass(frozen=True)
class FittedDemonstration:
    """A demonstration as it is trained."""

    whole: Demonstration
    """As it stands in its file: its side of the split is that of each part."""
    parts: list[Trainable]
    """One, unless it was split; none, if nothing of it fits."""
    long: bool = False
    """Whether it is longer than `max_length`."""
    tokens_cut: int = 0
    """Tokens that were cut away, of all of its training rows."""
    exchanges_left_out: int = 0
    """Exchanges of a dialogue that was split which do not fit by themselves."""
    turns_left_out: int = 0
    """Turns of a long dialogue that are in no part, since no answer that is learnt follows them there."""


def fit(
    tokenizer: PreTrainedTokenizerBase, demonstration: Demonstration, fitting: Fitting, changes: set[str] | None = None
) -> FittedDemonstration:
    """A demonstration in tokens, as far as it fits."""
    if fitting.train_on == "all" and not trains_every_turn(demonstration):
        raise DataError(
            "a turn of this dialogue is not to be learnt, and sft.train_on: all trains every token; set sft.train_on: "
            "assistant, or take the row out"
        )
    rows = encode_demonstration(tokenizer, demonstration.messages, changes)
    if longest(rows) <= fitting.max_length:
        return FittedDemonstration(demonstration, [(demonstration, rows)])
    if fitting.overlong == "cut":
        part = _cut(demonstration, rows, fitting.max_length)
        if part is None:
            return FittedDemonstration(demonstration, [], long=True)
        cut = sum(len(row.input_ids) for row in rows) - sum(len(row.input_ids) for row in part[1])
        idle = len(demonstration.messages) - 1 - _learnt(demonstration.messages)[-1]
        return FittedDemonstration(demonstration, [part], long=True, tokens_cut=cut, turns_left_out=idle)
    if fitting.overlong == "split":
        return _split(tokenizer, demonstration, fitting.max_length)
    return FittedDemonstration(demonstration, [], long=True)


def fit_each(
    tokenizer: PreTrainedTokenizerBase,
    rows: Iterable[Demonstration],
    fitting: Fitting,
    changed: Counter[str],
    bad: list[Bad],
) -> Iterator[tuple[int, FittedDemonstration]]:
    """Those of many demonstrations that can be encoded, each with its place among them. As `encode_each`, and many are
    encoded at once."""

    def encode(row: Demonstration, changes: set[str]) -> FittedDemonstration:
        return fit(tokenizer, row, fitting, changes)

    begin = 0
    for batch in _batches(rows):
        with at_once(tokenizer, [row.messages for row in batch]):
            for index, _, one in encode_each(batch, encode, changed, bad):
                yield begin + index, one
        begin += len(batch)


@contextmanager
def at_once(tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[Message]]) -> Iterator[None]:
    """Within it, `encode_demonstration` gives the same of these conversations in a part of the time."""
    try:
        blank = blank_before(tokenizer)
    except ModelError:  # of the tokenizer: each row has it
        yield
        return
    turns = [(messages, i) for messages in conversations for i in _learnt(messages)]
    answers = [blank + messages[i].content for messages, i in turns]
    with asked_ahead(tokenizer) as ahead:
        prompts = ahead.render([messages[:i] for messages, i in turns])
        ahead.write([*prompts, *answers])
        behind = ([tokenizer.eos_token_id, *ahead.ids[text]] for text in answers if text in ahead.ids)
        ahead.read([*(ahead.ids[text] for text in prompts if text in ahead.ids), *behind])
        yield


def _batches(rows: Iterable[Demonstration]) -> Iterator[list[Demonstration]]:
    """Rows that are encoded at once, which have about _AT_ONCE characters in all prompts of their turns together."""
    batch, size = list[Demonstration](), 0
    for row in rows:
        batch.append(row)
        size += sum(len(message.content) for message in row.messages) * (len(row.messages) // 2 + 1)
        if size >= _AT_ONCE:
            yield batch
            batch, size = [], 0
    yield batch


def longest(rows: Sequence[Encoded]) -> int:
    return max((len(row.input_ids) for row in rows), default=0)


def with_loss_on(rows: list[Encoded], train_on: TrainOn) -> list[Encoded]:
    """The training rows of one dialogue with loss on the tokens that `train_on` names.

    all  each token of the first row but its first, which nothing comes before. Further rows, which a template makes
         that writes earlier turns in another form, carry loss on their answers: else a text would be learnt twice
    """
    if train_on == "assistant" or not rows:
        return rows
    ids = rows[0].input_ids
    return [Encoded(ids, [IGNORED, *ids[1:]]), *rows[1:]]


def trains_every_turn(demonstration: Demonstration) -> bool:
    return all(message.trained for message in demonstration.messages if message.role == "assistant")


def encode_demonstrations(
    rows: Sequence[Demonstration],
    tokenizer: PreTrainedTokenizerBase,
    fitting: Fitting,
    refused: RefusedRows,
    on_bad_rows: BadRows,
    dropped: Dropped,
) -> list[FittedDemonstration]:
    """The demonstrations of a file that can be encoded, as far as they fit. Those of which nothing fits are counted as
    dropped."""
    bad: list[Bad] = []
    encoded = [one for _, one in fit_each(tokenizer, rows, fitting, refused.changes, bad)]
    settle(bad, on_bad_rows if encoded else "refuse", refused, dropped)
    dropped.add(TOO_LONG, sum(not one.parts for one in encoded))
    return encoded


# ---- cut --------------------------------------------------------------------------------------------------------


def _cut(demonstration: Demonstration, rows: list[Encoded], max_length: int) -> Trainable | None:
    """The rows up to `max_length`, with the dialogue up to the last turn of which a token is still trained; None if no
    trained token is left."""
    kept, turns_before, last_turn = [], 0, 0
    for row in rows:
        part = Encoded(row.input_ids[:max_length], row.labels[:max_length])
        if turns := _trained_turns(part):
            kept.append(part)
            last_turn = turns_before + turns
        turns_before += _trained_turns(row)
    if not kept:
        return None
    messages = demonstration.messages[: _learnt(demonstration.messages)[last_turn - 1] + 1]
    return demonstration.model_copy(update={"messages": messages}), kept


def _learnt(messages: Sequence[Message]) -> list[int]:
    """The places of the turns that are learnt."""
    return [i for i, message in enumerate(messages) if message.role == "assistant" and message.trained]


def _trained_turns(row: Encoded) -> int:
    """Trained turns of a row: between two of them stands a prompt, which carries no loss."""
    return sum(trained for trained, _ in groupby(row.labels, key=lambda label: label != IGNORED))


# ---- split ------------------------------------------------------------------------------------------------------


def _split(tokenizer: PreTrainedTokenizerBase, demonstration: Demonstration, max_length: int) -> FittedDemonstration:
    system, exchanges = exchanges_of(demonstration.messages)

    def encoded(start: int, stop: int) -> Trainable:
        messages = [*system, *(message for exchange in exchanges[start:stop] for message in exchange)]
        messages = _with_tools(messages, demonstration.messages[0].tools)
        return demonstration.model_copy(update={"messages": messages}), encode_demonstration(tokenizer, messages)

    parts, start, left_out, idle = list[Trainable](), 0, 0, 0
    while start < len(exchanges):
        part, stop = encoded(start, start + 1), start + 1
        if longest(part[1]) > max_length:
            start, left_out = stop, left_out + 1
            continue
        while stop < len(exchanges) and longest((longer := encoded(start, stop + 1))[1]) <= max_length:
            part, stop = longer, stop + 1
        if part[1]:
            parts.append(part)
        else:
            idle += sum(map(len, exchanges[start:stop]))
        start = stop
    return FittedDemonstration(demonstration, parts, long=True, exchanges_left_out=left_out, turns_left_out=idle)


def exchanges_of(messages: Sequence[Message]) -> tuple[list[Message], list[list[Message]]]:
    """(the system messages that a dialogue begins with, its exchanges: each ends with the assistant's turn before the
    next question, behind the calls of tools and their results)."""
    first = next(i for i, message in enumerate(messages) if message.role != "system")
    return list(messages[:first]), list(_exchanges(messages[first:]))


def _exchanges(messages: Sequence[Message]) -> Iterator[list[Message]]:
    exchange: list[Message] = []
    for message, following in zip_longest(messages, messages[1:]):
        exchange.append(message)
        if message.role == "assistant" and not (following and following.role == "tool"):
            yield exchange
            exchange = []


def _with_tools(messages: Sequence[Message], tools: list[Json] | None) -> list[Message]:
    """The messages of a part, which offers the tools of its whole at its beginning."""
    first, *others = messages
    return [first.model_copy(update={"tools": tools}) if tools else first, *others]

"""Conversations as tokens: the one place that applies a chat template and checks the result.

An assistant turn is trained, sampled and scored as

    prompt + answer + end

    prompt  the template's rendering of the turns before it, up to where the assistant speaks, as a server renders it
    answer  the text as it stands, tokenised by itself, so that nothing can be stripped or reach into the prompt
    end     the token that ends the turn (trueup.models.templates.ends), exactly if the answer is finished

Every row is checked, and refused by name if a check fails: every message's text stands in the rendered prompt; the
template itself writes an answer behind this prompt, and the end behind the answer; the answer's tokens decode to its
text. A text that spells a control token is tokenised as text. Some templates write earlier turns in another form than
they were trained in (they leave out reasoning, they strip). A dialogue then becomes several training rows, one for each
such form. No torch.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from trueup.data.records import Message
from trueup.errors import DataError, ModelError, TrueupError
from trueup.models.templates.block import BEGINS, CLOSED, reasoning_block, unasked_block
from trueup.models.templates.control import Control, cuts_in, parted
from trueup.models.templates.ends import ends_turn, section_of, turn_ends
from trueup.models.templates.form import blank_of, form_error, otherwise, takes_folding, with_tools, without_system
from trueup.models.templates.rendered import (
    MARK,
    MARKED,
    STRIPPED,
    Scaffold,
    Span,
    alike,
    differ,
    find_texts,
    first_line,
    joined,
    marked,
    split_at_marks,
    start_of,
)
from trueup.models.templates.texts import ids_of, is_ahead, rendered, text_of
from trueup.models.templates.tools import calls_as_written, check_spelling, has_tools, note

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""Label of a token that carries no loss (the field's convention)."""

SPELLED = "with text that spells a control token, which is tokenised as text"
COMPOSED = "with text in another Unicode form than NFC, which the tokenizer composes"
SPLIT = "trained turn by turn, since the chat template writes earlier turns otherwise than they are trained"
EMPTY_BLOCK = "with an empty block of reasoning before an answer that has none, since the prompt opens the block"
REOPENED = "with their reasoning begun as the prompt begins it"
"""Changes to the texts of rows. Each is reported with the count of its rows."""

# ---- Tokens -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Encoded:
    """A training row in tokens. `labels` is -100 on every token that carries no loss."""

    input_ids: list[int]
    labels: list[int]


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], changes: set[str] | None = None
) -> list[int]:
    """Tokens of a conversation that waits for the assistant's answer.

    changes  collects what the template or the tokenizer does to the texts (STRIPPED, ...)

    Raises DataError or ModelError if the rendered prompt lacks a message's text, or if the template does not write an
    answer as this prompt, the answer and EOS.
    """
    facts, changes = _facts(tokenizer), set() if changes is None else changes
    text = _render(tokenizer, prompt, asks=True)
    spans = _locate(tokenizer, facts, prompt, text, changes)
    cuts = cuts_in(text, [(span.start, span.stop, facts.control[span.role]) for span in spans])
    if not cuts:
        ids = ids_of(tokenizer, text)
    else:
        changes.add(SPELLED)
        parts = parted(text, cuts)
        ids = ids_of(tokenizer, parts[0])
        for part in parts[1:]:
            ids += continuation(tokenizer, part)
        _check_control_tokens(tokenizer, facts, ids, text, spans)
    _check_decoded(tokenizer, ids, text, spans, changes)
    return ids


def encode_completion(
    tokenizer: PreTrainedTokenizerBase, text: str, finished: bool = True, changes: set[str] | None = None
) -> list[int]:
    """Tokens of an answer that follows its prompt. They end with the end of turn exactly if the answer is finished.

    Where the prompt opens a block of reasoning, the answer closes it: with its own reasoning, or at once.
    """
    facts, changes = _facts(tokenizer), set() if changes is None else changes
    if (block := reasoning_block(tokenizer)) and block.opening:
        if not (text.startswith(block.opening) or block.continues(text)):
            changes.add(REOPENED if block.holds(text) else EMPTY_BLOCK)
        text = block.behind_prompt(text)
    behind = facts.blank + text
    cuts = cuts_in(behind, [(len(facts.blank), len(behind), facts.control["assistant"])])
    if cuts:
        changes.add(SPELLED)
    ids = [token for part in parted(behind, cuts) for token in continuation(tokenizer, part)]
    decoded = completion_text(tokenizer, ids)
    if decoded != text:
        if decoded != unicodedata.normalize("NFC", text):
            raise DataError(f"this tokenizer cannot write an answer: {differ(text, decoded)}")
        changes.add(COMPOSED)
    if facts.control_ids.intersection(ids):
        raise DataError(
            f"an answer spells a control token, and this tokenizer cannot write it as text: {start_of(text)}"
        )
    return [*ids, tokenizer.eos_token_id] if finished else ids


def encode_demonstration(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], changes: set[str] | None = None
) -> list[Encoded]:
    """Training rows of a conversation: one if each turn's prompt continues the row before it, else several.

    Labels are -100 outside the assistant's turns and in turns that are not `trained`. Each trained turn follows exactly
    the tokens of `encode_prompt`, and decodes to its text and the end of turn.
    """
    changes = set() if changes is None else changes
    rows: list[Encoded] = []
    for i, message in enumerate(messages):
        if message.role != "assistant" or not message.trained:
            continue
        prompt = encode_prompt(tokenizer, messages[:i], changes)
        with _of_message(i, message):
            check_reasoning(tokenizer, message.content)
            if message.tool_calls:
                answer = _encode_calls(tokenizer, messages[: i + 1], changes)
            else:
                answer = encode_completion(tokenizer, message.content, changes=changes)
        before = rows[-1] if rows else Encoded([], [])
        if rows and prompt[: len(before.input_ids)] != before.input_ids:
            changes.add(SPLIT)
            before = Encoded([], [])
        elif rows:
            rows.pop()
        waiting = [IGNORED] * (len(prompt) - len(before.input_ids))
        rows.append(Encoded(prompt + answer, before.labels + waiting + answer))
    return rows


def _encode_calls(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], changes: set[str]) -> list[int]:
    """Tokens of an assistant's turn that calls tools, as the template writes it, with the token that ends it there.

    messages  the conversation with this turn, which is the last
    """
    facts = _facts(tokenizer)
    check_spelling(messages[-1], facts.control)
    text, end = calls_as_written(tokenizer, messages, facts.blank, _render)
    note(tokenizer, messages, text, changes)
    if (block := reasoning_block(tokenizer)) and block.opening and not block.continues(text):
        changes.add(EMPTY_BLOCK)
        text = block.behind_prompt(text)
    ids = continuation(tokenizer, text)
    decoded = _decode_behind(tokenizer, ids)
    if decoded != text:
        if decoded != unicodedata.normalize("NFC", text):
            raise DataError(f"this tokenizer cannot write a call: {differ(text, decoded)}")
        changes.add(COMPOSED)
    return [*ids, end]


def completion_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of an answer's tokens. Nothing is stripped, and special tokens are shown. A blank that the template
    writes between its prompt and an answer is no part of the answer."""
    return _decode_behind(tokenizer, ids).removeprefix(_facts(tokenizer).blank)


def _decode_behind(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of tokens that follow others. Some tokenizers drop a space at the very beginning of a text, so they are
    decoded behind an EOS."""
    return text_of(tokenizer, [tokenizer.eos_token_id, *ids])[len(_facts(tokenizer).eos_text) :]


def blank_before(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the template writes between its prompt and an answer: nothing, or a blank. The blank is a part of the
    answer's first token in most vocabularies, so it is tokenised with the answer."""
    return _facts(tokenizer).blank


def answer_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of an answer as it was sampled, without its end and without the reasoning before it. This is what is
    shown, judged and rewarded."""
    return split_sampled(tokenizer, ids)[1]


def split_sampled(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> tuple[str, str]:
    """The reasoning that was sampled, and the answer, without their end (`Block.split`)."""
    text = completion_text(tokenizer, ids[:-1] if ends_turn(tokenizer, ids) else ids)
    block = reasoning_block(tokenizer) or unasked_block(text)
    return block.split(text) if block else ("", text)


def sampled_ids(
    tokenizer: PreTrainedTokenizerBase, text: str, finished: bool, ids: Sequence[int] | None
) -> list[int] | None:
    """The recorded tokens of an answer if they are a true record: this tokenizer decodes them to exactly the text
    (behind the start of a block, if the prompt writes it), and they end a turn exactly if the answer is finished.
    Otherwise None, and the text must be encoded anew."""
    if not ids or ends_turn(tokenizer, ids) != finished or not 0 <= min(ids) <= max(ids) < len(tokenizer):
        return None
    block = reasoning_block(tokenizer)
    decoded = (block.opening if block else "") + completion_text(tokenizer, ids[:-1] if finished else ids)
    return list(ids) if decoded == text else None


def check_reasoning(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    """A DataError for an answer that brings reasoning, where the template closes the block before every answer."""
    if BEGINS.match(text) and CLOSED.search(joined(_scaffold(tokenizer, _facts(tokenizer), _ASKED))):
        raise DataError(
            "this answer brings reasoning, but the chat template has closed the block before it: set model.thinking: "
            "true, or take the reasoning out of the row"
        )


@contextmanager
def _of_message(index: int, message: Message) -> Iterator[None]:
    try:
        yield
    except DataError as error:
        raise DataError(f"message {index + 1} ({message.role}): {error}") from None


# ---- What the template did --------------------------------------------------------------------------------------


@dataclass
class _Facts:
    """Facts about a tokenizer and its template, computed once."""

    key: tuple[object, ...]
    eos_text: str
    blank: str
    """As `blank_before` gives it."""
    control: dict[str, Control]
    """Control tokens by role. A text of that role that spells one is tokenised as text."""
    control_ids: set[int]
    scaffolds: dict[tuple[str, ...], Scaffold] = field(default_factory=dict)
    forms: dict[tuple[str, ...], TrueupError | None] = field(default_factory=dict)


_ASKED = (Message(role="user", content="?"),)
_FACTS: WeakKeyDictionary[PreTrainedTokenizerBase, _Facts] = WeakKeyDictionary()
_TAG = re.compile(r"</?\w+>")
"""Added tokens that a model writes itself (<think>, </tool_call>). In an answer they are no control tokens."""


def _facts(tokenizer: PreTrainedTokenizerBase) -> _Facts:
    if is_ahead(tokenizer):
        return _FACTS[tokenizer]
    ends = turn_ends(tokenizer)
    key = (tokenizer.chat_template, *ends, len(tokenizer))
    facts = _FACTS.get(tokenizer)
    if facts is None or facts.key != key:
        template = _template(tokenizer)
        special = {str(token) for token in tokenizer.all_special_tokens} | {*tokenizer.convert_ids_to_tokens(ends)}
        words = set()
        for token in tokenizer.added_tokens_decoder.values():
            if token.special:
                special.add(token.content)
            elif token.content in template and not token.content.isspace():
                words.add(token.content)
        markers = {word for word in words if not _TAG.fullmatch(word)}
        control = dict.fromkeys(("system", "user", "tool"), Control.of(special | words))
        control |= {"assistant": Control.of(special | markers)}
        ids = {tokenizer.convert_tokens_to_ids(token) for token in special | markers} | {*ends}
        eos_text = text_of(tokenizer, [tokenizer.eos_token_id])
        _FACTS[tokenizer] = facts = _Facts(key, eos_text, blank_of(tokenizer, template), control, ids)
    return facts


def _template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The chat template; of a tokenizer from elsewhere (a reward model's) nobody has looked whether it has one."""
    lacks = [
        what for what, there in (("chat template", tokenizer.chat_template), ("EOS", tokenizer.eos_token)) if not there
    ]
    try:
        if not lacks:
            return tokenizer.get_chat_template()
    except ValueError as error:  # of several templates none is the default
        lacks = [f"chat template to choose ({first_line(error)})"]
    raise ModelError(
        f"{tokenizer.name_or_path}: the tokenizer has no {' and no '.join(lacks)}, so nobody knows how a conversation "
        "is written for this model"
    )


def _render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], asks: bool) -> str:
    """The template's text of a conversation; a DataError that names the conversation if the template raises."""
    try:
        return rendered(tokenizer, messages, asks)
    except ModelError:  # it does not know tools
        raise
    except Exception as error:  # a template is third-party code, and runs on the user's data
        roles = ", ".join(message.role for message in messages)
        raise DataError(
            f"the chat template refuses this conversation ({roles}): {first_line(error)}; change the row, or "
            f"{_otherwise(tokenizer, messages)}"
        ) from None


def _otherwise(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    """What to do about a conversation that the template does not take."""
    if has_tools(messages):
        return with_tools(section_of(tokenizer))
    folds = any(message.role == "system" for message in messages) and takes_folding(_template(tokenizer))
    return (without_system if folds else otherwise)(section_of(tokenizer))


def _scaffold(tokenizer: PreTrainedTokenizerBase, facts: _Facts, messages: Sequence[Message]) -> Scaffold:
    """What the template writes around the texts. Without tools it is a matter of the roles alone, and kept."""
    roles = tuple(message.role for message in messages)
    if roles in facts.scaffolds and not has_tools(messages):
        return facts.scaffolds[roles]
    scaffold = split_at_marks(_render(tokenizer, marked(messages), asks=True))
    if not has_tools(messages):
        facts.scaffolds[roles] = scaffold
    return scaffold


def _form(
    tokenizer: PreTrainedTokenizerBase, facts: _Facts, messages: Sequence[Message], scaffold: Scaffold
) -> TrueupError | None:
    """The error of a conversation that is answered in another form than it is asked in; the same."""
    roles = tuple(message.role for message in messages)
    if roles in facts.forms and not has_tools(messages):
        return facts.forms[roles]
    error = form_error(tokenizer, facts.blank, marked(messages), joined(scaffold), _render)
    if not has_tools(messages):
        facts.forms[roles] = error
    return error


def _locate(
    tokenizer: PreTrainedTokenizerBase, facts: _Facts, messages: Sequence[Message], text: str, changes: set[str]
) -> list[Span]:
    """Where every message's text stands in the rendered prompt; raises if one is missing."""
    note(tokenizer, messages, text, changes)
    scaffold = _scaffold(tokenizer, facts, messages)
    for i, message in enumerate(messages if has_tools(messages) else ()):
        with _of_message(i, message):
            check_spelling(message, facts.control)
    for i, message in enumerate(messages):
        if i not in scaffold.order and message.content.strip():
            raise DataError(
                f"message {i + 1} ({message.role}): the chat template leaves this turn out, "
                f"{start_of(message.content)}; take it out of the row, or {_otherwise(tokenizer, [message])}"
            )
    if error := _form(tokenizer, facts, messages, scaffold):
        raise type(error)(str(error))
    spans = find_texts(scaffold, messages, text, changes)
    if spans is None:
        spans = _locate_one_by_one(tokenizer, messages, text, changes)
    return spans


def _locate_one_by_one(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], text: str, changes: set[str]
) -> list[Span]:
    """As `_locate`, for a template that depends on the texts: it marks one message at a time and keeps the others."""
    spans = []
    for i, message in enumerate(messages):
        spans_of_text = None
        for sign in (MARK.format(i), MARKED.format(i, message.content)):
            with_mark = [*messages[:i], message.model_copy(update={"content": sign}), *messages[i + 1 :]]
            scaffold = split_at_marks(_render(tokenizer, with_mark, asks=True))
            if spans_of_text is None and set(scaffold.order) == {i}:
                spans_of_text = find_texts(scaffold, messages, text, changes)
        if spans_of_text is None:
            raise DataError(
                f"message {i + 1} ({message.role}): the chat template writes another text than the row's, "
                f"{start_of(message.content)}; change the row, or {_otherwise(tokenizer, messages)}"
            )
        spans += spans_of_text
    if error := form_error(tokenizer, _facts(tokenizer).blank, messages, text, _render):
        raise error
    return sorted(spans)


# ---- What the tokenizer did -------------------------------------------------------------------------------------


def continuation(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Tokens of a text that follows other tokens, as close to the text as this tokenizer gets."""
    ids = ids_of(tokenizer, text)
    decoded = _decode_behind(tokenizer, ids)
    if decoded in (text, unicodedata.normalize("NFC", text)):
        return ids
    # SentencePiece puts a space before the first word of a text, but not after a line break.
    line_break, longer = (ids_of(tokenizer, one) for one in ("\n", f"\n{text}"))
    behind = longer[len(line_break) :]
    if longer[: len(line_break)] != line_break:
        return ids
    nearer = alike(text, _decode_behind(tokenizer, behind)) > alike(text, decoded)
    return behind if nearer else ids


def _check_control_tokens(
    tokenizer: PreTrainedTokenizerBase, facts: _Facts, ids: list[int], text: str, spans: list[Span]
) -> None:
    """Raise a DataError unless all control tokens of a prompt are the template's."""
    bare, at = "", 0
    for span in spans:
        bare, at = bare + text[at : span.start] + "x", span.stop
    own = ids_of(tokenizer, bare + text[at:])
    if any(Counter(ids)[token] > Counter(own)[token] for token in facts.control_ids):
        raise DataError("a text spells a control token, and this tokenizer cannot write it as text; change the row")


def _check_decoded(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], text: str, spans: list[Span], changes: set[str]
) -> None:
    """Raise a DataError unless the tokens of a prompt decode to every message's text."""
    decoded = text_of(tokenizer, ids)
    if decoded == text:
        return
    at = 0
    for span in spans:
        part = text[span.start : span.stop]
        for candidate, kind in ((part, ""), (unicodedata.normalize("NFC", part), COMPOSED), (part.strip(), STRIPPED)):
            if (start := decoded.find(candidate, at)) >= 0:
                at = start + len(candidate)
                changes |= {kind} - {""}
                break
        else:
            raise DataError(
                f"message {span.message + 1} ({span.role}): this tokenizer cannot write its text, {start_of(part)}"
            )

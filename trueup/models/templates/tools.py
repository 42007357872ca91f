"""Tools, calls of them and their results in a chat template: whether it writes them, and how.

Templates differ in all of it: some know no tools and leave them out in silence, some take the arguments of a call as an
object and some as JSON text, some want the id of a call in a form of their own. So a conversation is tried once, with
words that stand nowhere else, and only a template that writes all of them, in their order, is given tools. No torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

from trueup.data.records import Message, ToolCall, digest
from trueup.errors import DataError, ModelError
from trueup.files import Json
from trueup.models.templates.block import reasoning_block
from trueup.models.templates.control import Control, cuts_in
from trueup.models.templates.ends import section_of, turn_ends
from trueup.models.templates.form import token_at_start
from trueup.models.templates.rendered import first_line, mark, start_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Render = Callable[["PreTrainedTokenizerBase", Sequence[Message], bool], str]
"""Renders messages, with the template's request for an answer or without; raises DataError if it refuses them."""
MADE_IDS = "with ids of tool calls that are made here, since the chat template wants some in its own form"
"""A change to the texts of rows."""


class ToolForm(NamedTuple):
    """How a chat template writes tools."""

    arguments: Literal["object", "JSON text"] = "object"
    """How it takes the arguments of a call."""
    ids: bool = False
    """Whether it writes the id of a call."""
    problem: str = ""
    """Why it is given none; empty if it writes them."""

    @property
    def words(self) -> str:
        """The choice, for the count of rows with tools."""
        return f"with tools, which the chat template writes (it takes the arguments of a call as {self.arguments})"


def has_tools(messages: Sequence[Message]) -> bool:
    """Whether a conversation offers tools, calls one or has a result."""
    return any(message.role == "tool" or message.tool_calls or message.tools for message in messages)


def texts_of_tools(message: Message) -> Iterator[str]:
    """What a message says beside its content. A template writes it within its own text."""
    if message.tools:
        yield json.dumps(message.tools, ensure_ascii=False)
    for call in message.tool_calls or []:
        yield f"{call.name} {json.dumps(call.arguments, ensure_ascii=False)} {call.id or ''}"
    if message.role == "tool":
        yield f"{message.name or ''} {message.tool_call_id or ''}"


def check_spelling(message: Message, control: Mapping[str, Control]) -> None:
    """Raise a DataError for a tool or a call that spells a control token: the template's own stand beside it.

    control  the tokens that count as control tokens, by the role of a text
    """
    texts = [(text, "user") for text in texts_of_tools(message)]
    for text, role in [*texts, (message.content, "assistant")] if message.tool_calls else texts:
        if cuts := cuts_in(text, [(0, len(text), control[role])]):
            raise DataError(
                f"a tool, or a call of one, spells a control token at {start_of(text[cuts[0] - 1 :])}, which would be "
                "read as one; change the row"
            )


# ---- Written ----------------------------------------------------------------------------------------------------


def written(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], asks: bool) -> str:
    """The chat template's text of a conversation; raises whatever the template raises.

    Raises ModelError for a conversation with tools if the template does not write them.
    """
    if not has_tools(messages):
        turns = [{"role": message.role, "content": message.content} for message in messages]
        return str(tokenizer.apply_chat_template(turns, add_generation_prompt=asks, tokenize=False))
    form = tool_form(tokenizer)
    if form.problem:
        raise ModelError(form.problem)
    try:
        return _apply(tokenizer, messages, asks, form, form.ids)
    except Exception:
        if not any(message.tool_calls for message in messages):
            raise
        return _apply(tokenizer, messages, asks, form, True, anew=True)


def _apply(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    asks: bool,
    form: ToolForm,
    ids: bool,
    anew: bool = False,
) -> str:
    """
    ids   whether each call has an id, which is made where the row has none
    anew  whether all ids are made
    """
    turns, made = list[Json](), dict[str | None, str]()
    pending: list[str] = []
    for i, message in enumerate(messages):
        turn: Json = {"role": message.role, "content": message.content}
        if message.tool_calls:
            turn["tool_calls"], pending = [], []
            for call, own in zip(message.tool_calls, ids_made(message, i), strict=True):
                one: Json = {"type": "function", "function": {"name": call.name, "arguments": _given(call, form)}}
                if number := (own if anew or (ids and not call.id) else call.id):
                    one["id"] = made[call.id] = number
                    pending.append(number)
                turn["tool_calls"].append(one)
        if message.role == "tool":
            given = made.get(message.tool_call_id) if message.tool_call_id else None
            number = given or message.tool_call_id or (pending[0] if pending else None)
            pending = [one for one in pending if one != number]
            turn |= {key: value for key, value in (("name", message.name), ("tool_call_id", number)) if value}
        turns.append(turn)
    tools: Any = messages[0].tools or None
    return str(tokenizer.apply_chat_template(turns, tools=tools, add_generation_prompt=asks, tokenize=False))


def _given(call: ToolCall, form: ToolForm) -> Any:
    return call.arguments if form.arguments == "object" else json.dumps(call.arguments, ensure_ascii=False)


def ids_made(message: Message, index: int) -> list[str]:
    """An id for each call of a message, by its place and what it says: nine letters and digits, as Mistral wants."""
    calls = message.tool_calls or []
    return [digest(f"{index}/{place}/{call.model_dump_json()}")[:9] for place, call in enumerate(calls)]


def note(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], text: str, changes: set[str]) -> None:
    """Collect what a template does about the tools of a conversation, whose text this is."""
    if has_tools(messages):
        changes.add(tool_form(tokenizer).words)
        if any(number in text for i, message in enumerate(messages) for number in ids_made(message, i)):
            changes.add(MADE_IDS)


# ---- What the template knows --------------------------------------------------------------------------------------

_FORMS: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[Any, ToolForm]] = WeakKeyDictionary()
_KEY, _VALUE, _RESULT, _OF_TOOL, _ID = "zq_key", "zq value", "zq result", "Does zq things.", "zqcall001"
_TOOL = {
    "type": "function",
    "function": {
        "name": "zq_tool",
        "description": _OF_TOOL,
        "parameters": {
            "type": "object",
            "properties": {_KEY: {"type": "string", "description": "A zq."}},
            "required": [_KEY],
        },
    },
}
_PROBE = [
    Message(role="user", content="Ask zq.", tools=[_TOOL]),
    Message(
        role="assistant",
        content="",
        tool_calls=[ToolCall(name="zq_tool", arguments={_KEY: _VALUE, "more": [True]}, id=_ID)],
    ),
    Message(role="tool", content=_RESULT, name="zq_tool", tool_call_id=_ID),
]


def tool_form(tokenizer: PreTrainedTokenizerBase) -> ToolForm:
    """How the tokenizer's chat template writes tools; tried once."""
    known = _FORMS.get(tokenizer)
    if known is None or known[0] != tokenizer.chat_template:
        _FORMS[tokenizer] = known = (tokenizer.chat_template, _tried(tokenizer))
    return known[1]


def _tried(tokenizer: PreTrainedTokenizerBase) -> ToolForm:
    problems = []
    forms: tuple[ToolForm, ...] = (ToolForm("object"), ToolForm("JSON text"))
    for form in forms:
        try:
            text = _apply(tokenizer, _PROBE, True, form, ids=True)
        except Exception as error:  # a template is third-party code
            problems.append(f"it refuses a call with its result ({first_line(error)})")
            continue
        lacks = _lacks(text)
        if not lacks:
            return form._replace(ids=_ID in text)
        problems.append(f"it leaves out {lacks}")
    problem = next((one for one in problems if "leaves out" in one), problems[0])
    section = section_of(tokenizer)
    give = f"give {section}.chat_template a file with one that does" if section else "mend its tokenizer's template"
    return ToolForm(
        problem=f"the chat template does not write tools: {problem}; {give}, or leave such rows out with "
        "on_bad_rows: drop"
    )


def _lacks(text: str) -> str:
    """What of the tried conversation does not stand in a text, or not in its order, or not as JSON."""
    at = 0
    for what, words in (("the tools", _OF_TOOL), ("the call", _VALUE), ("the result", _RESULT)):
        place = text.find(words, at)
        if place < 0:
            return what
        at = place + len(words)
    calls = text[text.find(_OF_TOOL) : text.find(_RESULT)]
    as_python = f"{{'{_KEY}'" in calls or f'\\"{_KEY}' in calls
    return "" if not as_python and "zq_tool" in calls else "the call"


# ---- The call as an answer --------------------------------------------------------------------------------------


def calls_as_written(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], blank: str, render: Render
) -> tuple[str, int]:
    """What the template writes of the last turn behind its prompt, which is what the model has to say to call a tool,
    and the id of the token that ends it. It begins with the template's blank, if it has one there.

    Raises ModelError if the template writes a call behind another prompt than it asks with, or ends it with a token
    that ends no turn; DataError if it leaves something of the turn out.
    """
    prompt, message = messages[:-1], messages[-1]
    asked, text = render(tokenizer, prompt, True), render(tokenizer, messages, False)
    answer = mark("assistant", len(prompt))
    before, _, behind = render(tokenizer, [*prompt, answer], False).partition(answer.content)
    block = reasoning_block(tokenizer)
    begins = [asked, before.removesuffix(blank), asked.removesuffix(block.opening if block else "")]
    begin = next((one for one in begins if text.startswith(one)), None)
    if begin is None:
        raise ModelError(
            f"the chat template asks for an answer with {asked[-40:]!r}, and begins a call of a tool otherwise, so the "
            "model would be prompted in other tokens than it was trained on; give it a template that writes both alike"
        )
    body = text[len(begin) :]
    _check_whole(message, (block.opening if block and begin == asked else "") + body)
    rest = body.rstrip()
    for number in turn_ends(tokenizer):
        if rest.endswith(end := str(tokenizer.convert_ids_to_tokens(number))):
            return rest.removesuffix(end), number
    further = render(tokenizer, [*messages, Message(role="tool", content="x", **_of_call(message))], False)
    shown = further[len(text.rstrip()) :].lstrip() if further.startswith(text.rstrip()) else ""
    if token := token_at_start(tokenizer, shown):  # the next turn's token ends this one, as in GLM
        number = int(tokenizer.convert_tokens_to_ids(token))
        if number in turn_ends(tokenizer):
            return rest, number
    if behind.strip():
        raise ModelError(
            f"the chat template ends a call of a tool with {rest[-20:]!r}, and other answers with {behind.strip()!r}: "
            "nobody knows where the model would stop; give it another template"
        )
    return rest, int(tokenizer.eos_token_id)


def _of_call(message: Message) -> dict[str, str]:
    call = (message.tool_calls or [])[0]
    return {"name": call.name} | ({"tool_call_id": call.id} if call.id else {})


def _check_whole(message: Message, body: str) -> None:
    """Raise a DataError unless all that a turn says and calls stands in the text that the template makes of it."""
    if not _stands_in(message.content, body):
        raise DataError(
            "the chat template leaves out what is said beside a call; take the text or the call out of the row"
        )
    at = 0
    for call in message.tool_calls or []:
        place = body.find(call.name, at)
        texts = [text for text in _texts(call.arguments) if not _stands_in(text, body)]
        if place < 0 or texts:
            what = f"{texts[0][:40]!r} of a call of {call.name}" if texts else f"a call of {call.name}"
            raise DataError(f"the chat template leaves out {what}; change the row")
        at = place + len(call.name)


def _stands_in(text: str, body: str) -> bool:
    """Whether the words of a text stand in another in their order: what is between them may be quoted in any way."""
    at = 0
    for word in _WORDS.findall(text):
        if (place := body.find(word, at)) < 0:
            return False
        at = place + len(word)
    return True


_WORDS = re.compile(r"[A-Za-z0-9]+|[^\x00-\x7f]+")


def _texts(value: Any) -> Iterator[str]:
    """The texts in the arguments of a call, and the names of these."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for one in [*value, *value.values()] if isinstance(value, dict) else value:
            yield from _texts(one)

"""Conversations, however a column holds them: messages, one message, JSON text of these, texts that take turns, or one
text laid out with the marks of HH, ChatML or Guanaco."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from trueup.data.formats import settling, vocabulary
from trueup.data.formats.columns import Columns, Ledger, Values
from trueup.data.jsonl import cut, excerpt, loads
from trueup.data.tools import CALL_ROLES, RESULT_ROLES, WHOSE_RESULT, as_text, joined_calls, read_calls, results_in

ROLES = {"system": "system", "developer": "system", "user": "user", "human": "user", "prompter": "user"}
ROLES |= dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot"), "assistant")

_SPEAKERS = "role from speaker author".split()
_CONTENTS = "content value text".split()


def say(role: str, content: str) -> Values:
    return {"role": role, "content": content}


def turns(row: Columns, name: str, speaker: str = "user") -> list[Values]:
    """The conversation in a column; a text that is none is what `speaker` says."""
    value = row.get(name)
    if isinstance(value, str):
        value = _parse_messages(value, row.at(name))
    if isinstance(value, str):
        return turns_of_text(value, row.at(name), speaker) or [say(speaker, value)]
    if not isinstance(value, list | dict) or not value:
        expectation = "messages" if name in vocabulary.CONVERSATIONS else "text or messages"
        raise ValueError(
            f"{row.at(name)}: {f'expected {expectation}, found {excerpt(value)}' if name in row else 'missing'}"
        )
    if isinstance(value, dict) and all(isinstance(one, list) for one in value.values()):  # a column of each key
        value = [dict(zip(value, cells, strict=True)) for cells in zip(*value.values(), strict=True)]
    row.values[name] = value
    if isinstance(value, dict):
        return [message(row.object(name))]
    if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
        if name not in (*vocabulary.CONVERSATIONS, *vocabulary.HISTORY, "data") and len(value) > 1:
            problem = f"expected text or messages, found a list of {len(value)} texts"
            raise ValueError(f"{row.at(name)}: {problem}; say who speaks: [{{role, content}}, ...]")
        return taking_turns(value) if len(value) > 1 else [say(speaker, value[0])]
    return joined_calls([turn for one in row.objects(name) for turn in _turns_of_object(one)], row.at(name))


def _turns_of_object(one: Columns) -> list[Values]:
    """A message, or an object that holds a question and its answer."""
    if one.first(_SPEAKERS):
        return results_in(message(one))
    asks, answers = one.first(vocabulary.QUESTIONS), one.first([*vocabulary.ANSWERS, *vocabulary.REFERENCES])
    if asks is None or answers is None:
        return [message(one)]
    one.refuse_unsupported()
    pair = [say("user", one.take(asks, str)), say("assistant", one.take(answers, str))]
    system = one.held(vocabulary.SYSTEM)
    _refuse_more(one, [turn["content"] for turn in pair])
    if _carries_loss(one) is False:
        pair[1]["trained"] = False
    one.refuse_unclear_weights()
    return [*([say("system", one.take(system[0], str))] if system else []), *pair]


_STRING = r"""(?:"(?:[^"\\]|\\.)*+"|'(?:[^'\\]|\\.)*+')"""
_FIRST = rf"""\s*\{{\s*(?:["'](?:content|value|text)["']\s*:\s*{_STRING}\s*,\s*)?["'](?:role|from)["']\s*:\s*["']"""
_MESSAGES = re.compile(
    rf"""\s*\[{_FIRST}(?:system|developer|user|human|assistant|gpt)["']|{_FIRST}(?:assistant|gpt)["']""",
    re.IGNORECASE | re.DOTALL,
)
_SPEAKER = re.compile(
    r"""["'](role|from|speaker)["']\s*:\s*["'](system|developer|user|human|prompter|assistant|gpt|model|bot)["']""",
    re.IGNORECASE,
)
_CONTENT = re.compile(r"""["'](content|value|text)["']\s*:""")


def holds_messages(text: str) -> bool:
    """Whether a text is a list of messages, or the assistant's one, as JSON or as Python writes it."""
    return bool(_MESSAGES.match(text)) or (text.lstrip()[:1] == "[" and _is_of_messages(text))


def _is_of_messages(text: str) -> bool:
    """Whether a text is an object, or a list of some, in which a speaker says something, whatever other keys it has."""
    braces = re.match(r"\[?\s*+\{", text.lstrip()) and text.rstrip().endswith(("}", "]"))
    return bool(braces and _SPEAKER.search(text) and _CONTENT.search(text))


def is_plain_answer(row: Columns, name: str) -> bool:
    """Whether a column holds an answer as it stands: a text, JSON too, unless it is messages, or a list of texts to a
    question that is written so."""
    value = row.values.get(name)
    if not isinstance(value, str) or holds_messages(value):
        return False
    return not value.lstrip().startswith("[") or not any(_is_texts(row.values.get(one)) for one in vocabulary.QUESTIONS)


def _is_texts(value: Any) -> bool:
    """Whether a value is a list of texts, or was one before it was read."""
    value = loads(value) if isinstance(value, str) else value
    return isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)


def _parse_messages(text: str, at: str) -> Any:
    """The messages, or the texts, of a JSON text; any other text as it is."""
    start = text.lstrip()[:40]
    begins = re.match(r"""\[?\s*\{\s*["'](role|from|content|value|speaker)["']\s*:""", start)
    messages = bool(begins and re.search(r"""["'](role|from|speaker)["']\s*:""", text)) or _is_of_messages(text)
    if not messages and not re.match(r"""\[\s*["']""", start):
        return text
    value = loads(text)
    if messages and isinstance(value, dict) and not {"role", "from", "speaker", "author"} & value.keys():
        value = ValueError("an object around them")
    if messages and isinstance(value, ValueError):
        raise ValueError(f"{at}: looks like messages written as text, and is {value}; write them as a JSON list")
    texts = isinstance(value, list) and value and all(isinstance(one, str) for one in value)
    return value if messages or texts else text


def message(one: Columns) -> Values:
    """A message of any vocabulary as ours; `trained` only where it says that it carries no loss."""
    one.refuse_unsupported(vocabulary.CALLS)
    speaker = one.first(_SPEAKERS) or ("from" if "value" in one else "role")
    said_by = role = one.take(speaker, str).strip().lower()
    if one.ledger.with_tools:
        role = "tool" if role in RESULT_ROLES else "assistant" if role in CALL_ROLES else role
    if role in vocabulary.FOREIGN_ROLES and not (role == "tool" and one.ledger.with_tools):
        raise ValueError(
            f"{one.at(speaker)}: {excerpt(role)} speaks, which Trueup cannot give to a model; take the row out"
        )
    if role not in ROLES and role != "tool":
        raise ValueError(f"{one.at(speaker)}: {cut(repr(role), 40)} is none of the known roles {', '.join(ROLES)}")
    role = ROLES.get(role, role)
    for name in vocabulary.OF_A_MESSAGE:
        if one.holds(name) and (name, one.get(name)) != ("channel", "final"):
            raise ValueError(
                f"{one.at(name)}: {excerpt(one.get(name), 40)} cannot be given to a model; take the row out"
            )
    name = one.first(_CONTENTS) or ("value" if speaker == "from" else "content")
    more = _calls(one, name, role, said_by in CALL_ROLES)
    if isinstance(parts := one.values.get(name), list):
        one.values[name] = _join_parts(parts, one, name)
    content = one.take(name, str)
    _refuse_more(one, [content])
    loss = _carries_loss(one) if role == "assistant" else one.carries_loss()
    if role != "assistant" and (reason := settling.why_taken_out(one)):
        raise ValueError(
            f"{one.within}{reason} takes out what a {role} says, and what follows hangs on it; take the row out, or "
            f"{vocabulary.IGNORE}"
        )
    one.refuse_unclear_weights()
    if loss and role != "assistant":
        raise ValueError(f"{one.at(speaker)}: {role} turns are never trained on, and this one says that it is to be")
    return say(role, content) | more | ({"trained": False} if loss is False and role == "assistant" else {})


def _calls(one: Columns, name: str, role: str, is_call: bool) -> Values:
    """What a message says of calls: those of an assistant, or whose result it is. Its content becomes text.

    name     of its content
    is_call  whether the content is the call
    """
    if not one.ledger.with_tools:
        return {}
    content = one.values.get(name)
    if role == "tool":
        if isinstance(content, dict) or (isinstance(content, list) and not _are_parts(content)):
            one.values[name] = as_text(content)
        return {of: str(one.get(key)) for key, of in WHOSE_RESULT.items() if one.there(key)}
    columns = [key for key in ("tool_calls", "function_call", "function_calls") if one.holds(key)]
    if role != "assistant" or (len(columns) != 1 and not is_call):
        return {}  # of several the others are refused as what was not read
    calls = read_calls(content if is_call else one.get(columns[0]), one.at(name if is_call else columns[0]))
    if is_call or content is None:
        one.values[name] = ""
    return {"tool_calls": calls}


def _are_parts(content: list[Any]) -> bool:
    return bool(content) and all(isinstance(part, dict) and "type" in part for part in content)


_MORE = [*vocabulary.GIVEN, *vocabulary.CHOICES, *vocabulary.HISTORY, *vocabulary.SYSTEM, "content", "value", "text"]


def _refuse_more(one: Columns, texts: list[str]) -> None:
    """Raise for what a turn holds beside the text that is read of it, and does not say in it."""
    for name, value in one.values.items():
        if name in one.names_read or vocabulary.is_empty(value):
            continue
        if name in _MORE or (vocabulary.is_related(name) and not isinstance(value, bool | int | float)):
            settling.refuse_other_text(one, name, value, texts)
        settling.refuse_reasoning(one, name, value, texts)


def _carries_loss(one: Columns) -> bool | None:
    """Whether an answer is to be imitated, by its weight or by what people said of it; None where nothing says so."""
    loss = one.carries_loss()
    return False if settling.why_taken_out(one) or settling.why_bad(one) or settling.is_marked(one) else loss


def _join_parts(parts: list[Any], one: Columns, name: str) -> str:
    """Content in parts: its texts, a line each. Any other part is refused."""
    texts = []
    for i, part in enumerate(parts):
        text = part if isinstance(part, str) else None
        if isinstance(part, dict) and part.get("type", "text") in ("text", "input_text", "output_text"):
            others = {key: value for key, value in part.items() if key not in ("type", "text")}
            text = (
                part.get("text")
                if vocabulary.is_empty({k: v for k, v in others.items() if k != "annotations"})
                else None
            )
        if not isinstance(text, str):
            raise ValueError(
                f"{one.at(name)}.{i}: expected a part of type text, found {excerpt(part)}; Trueup gives text alone to "
                "a model: take the row out"
            )
        texts.append(text)
    return "\n".join(texts)


def taking_turns(texts: Iterable[str]) -> list[Values]:
    """Texts of which the user says the first, the assistant the second, and so on."""
    return [say("assistant" if i % 2 else "user", text) for i, text in enumerate(texts)]


# ---- Text with marks --------------------------------------------------------------------------------------------

_HH = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_GUANACO = re.compile(r"### (Human|Assistant):")
_CHATML = re.compile(r"\s*<\|im_start\|>(\w+)\n(.*?)(?:<\|im_end\|>|\Z)", re.DOTALL)
# A text may begin, and end, with as much white space as a model made of it: it is looked through once.
_FOREIGN_START = re.compile(
    r"\s*+(?:(?:<s>|<bos>|<\|begin_of_text\|>)\s*+)?+"
    r"(\[INST\]|<\|start_header_id\|>|<start_of_turn>|<\|(?:user|system|assistant|prompter)\|>|### Instruction:"
    r"|USER:|<\|start\|>|<\|turn\|?>)"
)
_FOREIGN_END = re.compile(r"(\n\nAssistant:|### Assistant:|### Response:|\[/INST\]|<\|assistant\|>|\bASSISTANT:)\Z")


def turns_of_text(text: str, at: str, speaker: str = "user") -> list[Values] | None:
    """The turns of a text that begins with the marks of HH, ChatML or Guanaco; None for any other text.

    Only the space around the turns of HH and Guanaco goes. A prompt in the marks of another template is refused: nobody
    is asked in it.
    """
    if text.lstrip().startswith("<|im_start|>"):
        return _chatml(text, at)
    for marks in (_HH, _GUANACO):
        before, *parts = marks.split(text)
        if not before.strip() and parts[:1] == ["Human"] and (text.startswith("\n\n") or "Assistant" in parts):
            return [say(ROLES.get(n.lower(), "user"), t.strip()) for n, t in zip(parts[::2], parts[1::2], strict=True)]
    if speaker == "user" and (mark := _FOREIGN_START.match(text) or _FOREIGN_END.search(text.rstrip())):
        raise ValueError(
            f"{at}: is laid out with the marks of a chat template ({excerpt(mark[1].strip())}), which would be read as "
            'text; write it as messages: [{"role": "user", "content": ...}]'
        )
    return None


def _chatml(text: str, at: str) -> list[Values]:
    messages, end = [], 0
    while (match := _CHATML.match(text, end)) and match[1] in ROLES:
        messages.append(say(ROLES[match[1]], match[2]))  # its marks say where a text begins and ends
        end = match.end()
    if not messages or text[end:].strip() or any("<|im_" in turn["content"] for turn in messages):
        raise ValueError(f"{at}: begins with the marks of ChatML and does not go on so; write it as messages")
    return messages


def continues_hh(row: Columns) -> bool:
    """Whether the prompt is an HH text that ends with the mark of the answer, whose spaces are around the answer."""
    return isinstance(row.values.get("prompt"), str) and row.values["prompt"].rstrip().endswith("\n\nAssistant:")


def without_answer_mark(turns: list[Values]) -> list[Values]:
    """A prompt without the mark of the answer to come, where its text ends with it."""
    last = turns[-1] if turns else {}
    is_mark = last.get("role") == "assistant" and not last["content"].strip() and not last.get("tool_calls")
    return turns[:-1] if is_mark else turns


# ---- The prompt -------------------------------------------------------------------------------------------------


def prompt_of(row: Columns) -> list[Values]:
    """The prompt of a row: its conversation, or its question with what that is about and the choices it leaves.

    A conversation that ends with an answer is the prompt of no other answer, where there is a question beside it.
    """
    names = row.held(vocabulary.CONVERSATIONS)
    if names and (not row.held(vocabulary.QUESTIONS) or waits(row, names[0])):
        return with_preface(row, without_answer_mark(turns(row, names[0])))
    return with_preface(row, question(row))


def waits(row: Columns, name: str) -> bool:
    """Whether a conversation waits for an answer."""
    ledger = Ledger(row.ledger.ignore, row.ledger.with_tools)
    last = without_answer_mark(turns(Columns({name: row.values[name]}, ledger), name))[-1:]
    return bool(last) and last[0]["role"] != "assistant"


def with_preface(row: Columns, conversation: list[Values]) -> list[Values]:
    """A conversation behind the columns that come before it, history and system message, which it may repeat."""
    if name := next(iter(row.held(vocabulary.HISTORY)), None):
        before = _history(row, name)
        if utterances(conversation[: len(before)]) != utterances(before):
            conversation = [*before, *conversation]
    if name := next(iter(row.held(vocabulary.SYSTEM)), None):
        system = say("system", row.take(name, str))
        if not any(utterances([one]) == utterances([system]) for one in conversation if one["role"] == "system"):
            if conversation and conversation[0]["role"] == "system":
                raise ValueError(f"{row.at(name)}: a system turn says otherwise; take one of them out")
            conversation = [system, *conversation]
    return conversation


def utterances(turns: list[Values]) -> list[tuple[str, str]]:
    return [(one["role"], one["content"].strip() + str(one.get("tool_calls") or "")) for one in turns]


def _history(row: Columns, name: str) -> list[Values]:
    """Earlier turns: pairs of question and answer, messages, or texts that take turns."""
    value = row.get(name)
    if isinstance(value, list) and all(isinstance(one, list) and len(one) == 2 for one in value):
        texts = [text for pair in value for text in pair]
        if all(isinstance(text, str) for text in texts):
            return taking_turns(texts)
    messages = turns(row, name)
    if messages[-1]["role"] == "user":
        raise ValueError(f"{row.at(name)}: expected pairs of question and answer or messages, found {excerpt(value)}")
    return messages


def question(row: Columns) -> list[Values]:
    contexts = row.held(vocabulary.GIVEN)
    about = [name for name in contexts if _is_messages(row.values[name])]
    name = next(iter(row.held(vocabulary.QUESTIONS)), None)
    before = [one for other in about if other != name for one in turns(row, other)]  # messages were said before
    if name is None and not before:
        name = row.first(vocabulary.QUESTIONS) or vocabulary.QUESTIONS[0]
        row.take(name, str)
    texts = [_context_text(row, one) for one in contexts if one not in about and one != name]
    choices = read_choices(row)
    if choices:
        texts.append("\n".join(f"{letter}. {text}" for letter, text in choices))
    if name is None:
        return before if not texts else [*before[:-1], say("user", "\n\n".join([before[-1]["content"], *texts]))]
    if isinstance(row.values[name], dict) and "role" not in row.values[name] and "from" not in row.values[name]:
        messages = _prompt_of_object(row.object(name))
    else:
        messages = without_answer_mark(turns(row, name))
    if texts:
        last = messages[-1]
        if last["role"] != "user":
            raise ValueError(
                f"{row.at(name)}: does not end with the user, so {row.at(contexts[0])} has no place behind it"
            )
        messages[-1] = say("user", "\n\n".join([*([last["content"]] if last["content"].strip() else []), *texts]))
    return before + messages


def _is_messages(value: Any) -> bool:
    return isinstance(value, list) and isinstance(value[0], dict) and bool({"role", "from"} & value[0].keys())


def _prompt_of_object(inner: Columns) -> list[Values]:
    """A question that is an object: OpenAI's {messages}, WebGPT's {full_text}."""
    if name := inner.first(["full_text"]):
        return [say("user", inner.take(name, str))]
    return prompt_of(inner)


def _context_text(row: Columns, name: str) -> str:
    value = row.get(name)
    if isinstance(value, str) and holds_messages(value):
        raise ValueError(f"{row.at(name)}: holds messages as text; write them as a JSON list, or as text of their own")
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return "\n\n".join(value)
    return row.take(name, str)


_VERDICT_NAMES = "winner preference preferred better verdict".split()
"""Columns that say which of several answers is better: those are no choices."""


def read_choices(row: Columns) -> list[tuple[str, str]]:
    """Letter and text of each answer to choose from."""
    name = next(iter(row.held(vocabulary.CHOICES)), None)
    if name is not None:
        value = row.get(name)
        if isinstance(value, dict) and all(isinstance(value.get(key), list) for key in ("text", "label")):  # ARC
            value = dict(zip(map(str, value["label"]), value["text"], strict=False))
        if isinstance(value, list):
            value = {chr(ord("A") + i): text for i, text in enumerate(value)}
        if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
            raise ValueError(f"{row.at(name)}: expected a list of texts, found {excerpt(value)}")
        return list(value.items())
    if not any(name[-1:] in "abc" for name in row.values):
        return []
    for pattern in ("option_{}", "choice_{}", "answer_{}", "option{}", "op{}", "{}"):
        names = [name for letter in "abcdefgh" if row.holds(name := pattern.format(letter))]
        if not set(names).isdisjoint(row.answers) or (pattern == "answer_{}" and row.held(_VERDICT_NAMES)):
            continue
        if len(names) > 2 or (len(names) == 2 and pattern.startswith(("option", "choice", "op"))):
            return [(name[-1].upper(), row.take(name, str)) for name in names]
    return []


# ---- What is answered -------------------------------------------------------------------------------------------


def answer(row: Columns, name: str, prompt: list[Values], least: int = 0) -> str:
    """One completion; a conversation that begins with the prompt is taken without it.

    least  how many turns of the prompt it repeats, if any; what other columns put before them it need not repeat
    """
    value = row.values.get(name)
    if isinstance(value, str) and continues_hh(row) and not turns_of_text(value, row.at(name), "assistant"):
        row.names_read.add(name)
        return value.strip()
    if is_plain_answer(row, name) and not turns_of_text(str(value), row.at(name), "assistant"):
        return str(row.get(name))
    messages = turns(row, name, "assistant")
    counts = [*range(min(len(prompt), len(messages)), max(least, 1) - 1, -1), 0]
    overlap = next(n for n in counts if utterances(messages[:n]) == utterances(prompt[len(prompt) - n :]))
    messages = messages[overlap:]
    if [turn["role"] for turn in messages] != ["assistant"]:
        roles = ", ".join(turn["role"] for turn in messages[:8]) or "none"
        asks = [row.at(one) for one in row.values if one in row.names_read and one in _OF_A_PROMPT]
        within = f" ({', '.join(asks)})" if asks else ""
        raise ValueError(
            f"{row.at(name)}: expected one assistant turn after the prompt{within}, found {roles}; both answers must "
            "follow the same conversation"
        )
    return str(messages[0]["content"])


_OF_A_PROMPT = {
    *vocabulary.CONVERSATIONS,
    *vocabulary.QUESTIONS,
    *vocabulary.GIVEN,
    *vocabulary.HISTORY,
    *vocabulary.SYSTEM,
}

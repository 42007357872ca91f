"""Tools that a conversation offers, calls of them and their results, however a file writes them, in one form.

    tools   [{"type": "function", "function": {"name", "description", "parameters"}}], OpenAI's: the form that chat
            templates take (https://huggingface.co/docs/transformers/chat_extras)
    calls   {"name", "arguments", "id"}: the arguments are an object, since a template writes JSON text between quotes

Older and flatter forms, and JSON text of all these, are read as the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from trueup.data.jsonl import excerpt, loads
from trueup.files import Json

RESULT_ROLES = "tool function observation ipython tool_response".split()
"""Speakers of a result, in lower case."""
CALL_ROLES = ("function_call", "tool_call")
"""Speakers whose text is a call, or a list of calls, as JSON: an assistant's turn in ShareGPT and ms-swift."""
WHOSE_RESULT = {"name": "name", "tool_call_id": "tool_call_id", "call_id": "tool_call_id"}
"""Keys of a result that say whose it is, and what they are here."""
_WRAPPED = re.compile(r"\s*<tool_response>(.*?)</tool_response>\s*", re.DOTALL)

# ---- Tools ------------------------------------------------------------------------------------------------------


def read_tools(value: Any, at: str) -> list[Json]:
    """The tools of a conversation. Raises ValueError for what is none."""
    value = _parsed(value, at)
    return [_tool(_parsed(one, at), at) for one in (value if isinstance(value, list) else [value])]


def are_written(tools: Sequence[Json], first: Json) -> bool:
    """Whether a conversation's first message names each of its tools, as Hermes's system messages do."""
    _, opened, rest = first["content"].partition("<tools>")
    written, closed, _ = rest.partition("</tools>")
    names = (json.dumps(tool["function"]["name"]) for tool in tools)
    return first["role"] == "system" and bool(opened and closed) and all(name in written for name in names)


def _tool(one: Any, at: str) -> Json:
    inner = one.get("function") if isinstance(one, dict) and isinstance(one.get("function"), dict) else one
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str) or not inner["name"].strip():
        expected = f'{at}: expected tools, such as {{"name": ..., "parameters": ...}}'
        raise ValueError(f"{expected}, found {excerpt(one)}; mend them, or list the column in ignore_columns")
    if inner is one:
        return {"type": "function", "function": {key: value for key, value in one.items() if key != "type"}}
    return {**one, "type": "function", "function": inner}


ARGUMENTS = ("arguments", "parameters", "args", "input", "kwargs")
"""Names of a call's arguments."""
_KNOWN = {*ARGUMENTS, "name", "id", "call_id", "type", "function", "index"}

# ---- Calls ------------------------------------------------------------------------------------------------------


def read_calls(value: Any, at: str) -> list[Json]:
    """The calls of an assistant's turn: a list of them, or one. Raises ValueError for what is none."""
    value = _parsed(value, at)
    calls = [_call(_parsed(one, at), at) for one in (value if isinstance(value, list) else [value])]
    if not calls:
        raise ValueError(f"{at}: expected a call of a tool, found none")
    return calls


def _call(one: Any, at: str) -> Json:
    inner = one.get("function") if isinstance(one, dict) and isinstance(one.get("function"), dict) else one
    expected = f'{at}: expected a call of a tool, {{"name": ..., "arguments": {{...}}}}'
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str) or not inner["name"].strip():
        raise ValueError(f"{expected}, found {excerpt(one)}")
    whole = {**one, **inner}
    given = {key: _arguments(whole[key], key, expected) for key in ARGUMENTS if whole.get(key) is not None}
    if any(arguments != next(iter(given.values())) for arguments in given.values()):
        raise ValueError(f"{expected}, and {' and '.join(given)} differ: {excerpt(one)}; take one out")
    more = [key for key, value in whole.items() if key not in _KNOWN and value not in (None, "", [], {})]
    if more:
        raise ValueError(f"{at}: a call of a tool holds {more[0]}, which no template is given: take it out")
    number = next((whole[key] for key in ("id", "call_id") if whole.get(key) is not None), None)
    return {
        "name": inner["name"],
        "arguments": next(iter(given.values()), {}),
        "id": None if number is None else str(number),
    }


def _arguments(value: Any, key: str, expected: str) -> Json:
    arguments = value
    if isinstance(value, str):
        arguments = loads(value) if value.strip() else {}
    if arguments is None:  # JSON text of null
        return {}
    if not isinstance(arguments, dict):
        why = f" ({arguments})" if isinstance(arguments, ValueError) else ""
        raise ValueError(f"{expected}, and its {key} are no object, nor JSON text of one{why}: {excerpt(value)}")
    return arguments


def _parsed(value: Any, at: str) -> Any:
    """The value of a JSON text; any other value as it is."""
    if not isinstance(value, str):
        return value
    parsed = loads(value)
    if isinstance(parsed, ValueError):
        raise ValueError(
            f"{at}: {excerpt(value)} is {parsed}; mend it, or list the column in ignore_columns, which leaves it out"
        )
    return parsed


# ---- Turns ------------------------------------------------------------------------------------------------------


def results_in(turn: Json) -> list[Json]:
    """A turn, or those that it is made of: Hermes writes all results in one turn, each within <tool_response>."""
    if turn["role"] != "tool" or not turn["content"].lstrip().startswith("<tool_response>"):
        return [turn]
    texts = _WRAPPED.findall(turn["content"])
    whole = not _WRAPPED.sub("", turn["content"]).strip()
    return [{**turn, "content": text.strip()} for text in texts] if whole else [turn]


def joined_calls(turns: Sequence[Json], at: str) -> list[Json]:
    """The turns with the calls of a turn in it, where a file gives each call a turn of its own.

    A result is given the name of its tool and the id of its call, where the file leaves them out and they are known.
    """
    joined: list[Json] = []
    for turn in turns:
        before = joined[-1] if joined else {"role": ""}
        if turn.get("tool_calls") and before["role"] == "assistant":
            if before.get("trained", True) != turn.get("trained", True):
                raise ValueError(f"{at}: of two turns that call tools together one carries loss and the other does not")
            if before.get("tool_calls") and turn["content"].strip():
                raise ValueError(
                    f"{at}: an assistant's turn says {excerpt(turn['content'])} behind a call, and a template writes "
                    "what is said before the calls: give the call's result a turn between them, or take the text out"
                )
            content = "\n".join(filter(None, [before["content"], turn["content"]]))
            before |= {"content": content, "tool_calls": [*before.get("tool_calls", []), *turn["tool_calls"]]}
        else:
            joined.append(dict(turn))
    for calls, results in _answered(joined):
        _name(calls, results, at)
    return joined


def _answered(turns: Sequence[Json]) -> Iterator[tuple[list[Json], list[Json]]]:
    """The calls of each turn that results follow, with these."""
    calls: list[Json] = []
    for is_result, group in groupby(turns, key=lambda turn: turn["role"] == "tool"):
        of_group = list(group)
        if is_result:
            yield calls, of_group
        else:
            calls = of_group[-1].get("tool_calls") or []


def _name(calls: list[Json], results: list[Json], at: str) -> None:
    by_id = {call["id"]: call for call in calls if call["id"] is not None}
    if len(by_id) < sum(call["id"] is not None for call in calls):
        raise ValueError(f"{at}: two calls of one turn have the same id")
    names, answered = {call["name"] for call in calls}, set[str]()
    for place, result in enumerate(results):
        number, name = result.get("tool_call_id"), result.get("name")
        if number is not None and by_id and number not in by_id:
            raise ValueError(f"{at}: a result is of the call {excerpt(number)}, and none before it has this id")
        if number in answered:
            raise ValueError(f"{at}: two results are of the call {excerpt(number)}")
        if number is not None:
            answered.add(number)
        call = by_id.get(number) or (calls[place] if len(calls) == len(results) else None)
        if name and names and name not in names:
            raise ValueError(f"{at}: a result is of {excerpt(name)}, which no call before it is of")
        if call:
            if name and name != call["name"]:
                raise ValueError(f"{at}: a result of {excerpt(name)} stands where {excerpt(call['name'])} was called")
            result |= {"name": call["name"]} | ({"tool_call_id": call["id"]} if call["id"] is not None else {})


def as_text(result: Any) -> str:
    """A result as text: an object or a list as JSON."""
    return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)

"""Rows with calls of tools, as people write them: read whole, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trueup.data.formats.reading import read_demonstrations
from trueup.data.records import Demonstration, Dropped
from trueup.errors import DataError

TOOL = {"type": "function", "function": {"name": "f", "description": "Looks.", "parameters": {"type": "object"}}}


def read(tmp_path: Path, row: dict[str, Any]) -> Demonstration:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    return read_demonstrations(file, Dropped())[0]


def calling(call: dict[str, Any], **turn: Any) -> dict[str, Any]:
    turns = [
        {"role": "user", "content": "Where is it?"},
        {"role": "assistant", "content": "", "tool_calls": [call], **turn},
        {"role": "tool", "content": "Here."},
        {"role": "assistant", "content": "It is here."},
    ]
    return {"messages": turns, "tools": [TOOL]}


@pytest.mark.parametrize("text", ["", None])
@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking", "thought", "context"])
def test_what_is_said_beside_a_call_without_a_text_is_not_lost(tmp_path: Path, name: str, text: str | None) -> None:
    """An empty text is a part of everything, and so nothing may stand in for it."""
    row = calling({"name": "f", "arguments": {}}, content=text, **{name: "Think hard."})
    with pytest.raises(DataError, match=name):
        read(tmp_path, row)


@pytest.mark.parametrize("key", ["arguments", "parameters", "args", "input", "kwargs"])
@pytest.mark.parametrize("written", [lambda value: value, json.dumps])
@pytest.mark.parametrize("inside", [True, False])
def test_arguments_are_read_whatever_they_are_called_and_wherever_they_stand(
    tmp_path: Path, key: str, written: Any, inside: bool
) -> None:
    given = {key: written({"x": 1})}
    call = {"function": {"name": "f", **given}} if inside else {"function": {"name": "f"}, **given}
    (read_call,) = read(tmp_path, calling(call)).messages[1].tool_calls or []
    assert read_call.arguments == {"x": 1}


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        ({"name": "f", "arguments": {"x": 1}, "parameters": {"x": 2}}, "arguments and parameters differ"),
        ({"name": "f", "arguments": {"x": 1}, "thought": "Hm."}, "holds thought, which no template is given"),
        ({"name": "f", "arguments": {}, "result": [1]}, "holds result"),
        ({"name": "f", "arguments": "{"}, "no object, nor JSON text of one"),
        ({"name": "f", "arguments": [1]}, "no object, nor JSON text of one"),
    ],
)
def test_a_call_that_would_be_half_read_is_refused_by_name(tmp_path: Path, call: Any, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        read(tmp_path, calling(call))


@pytest.mark.parametrize("name", ["tool_call_id", "call_id"])
def test_results_belong_to_the_calls_that_they_name(tmp_path: Path, name: str) -> None:
    row = calling({"name": "f", "id": 0})
    row["messages"][1]["tool_calls"].append({"name": "g", "id": 1})
    row["messages"][2:3] = [{"role": "tool", "content": of, name: number} for of, number in (("G", 1), ("F", 0))]
    results = [one for one in read(tmp_path, row).messages if one.role == "tool"]
    assert [(one.content, one.name, one.tool_call_id) for one in results] == [("G", "g", "1"), ("F", "f", "0")]


@pytest.mark.parametrize(
    ("role", "text", "are_there"),
    [
        ("user", "What is <tools> in Hermes?", False),
        ("system", "Answer with <tools> wisely.", False),
        ("system", "<tools>[]</tools>", False),
        ("system", '<tools>[{"name": "f"}]</tools>', True),
    ],
)
def test_tools_are_offered_unless_the_system_message_names_each(
    tmp_path: Path, role: str, text: str, are_there: bool
) -> None:
    row = calling({"name": "f"})
    row["messages"][: 1 if role == "user" else 0] = [{"role": role, "content": text}]
    assert (read(tmp_path, row).messages[0].tools is None) == are_there


def test_a_result_that_is_a_list_is_json_and_its_parts_of_text_are_joined(tmp_path: Path) -> None:
    for content, text in (
        (["Rome", "Oslo"], '["Rome", "Oslo"]'),
        ([{"name": "Rome"}], '[{"name": "Rome"}]'),
        ([{"type": "text", "text": "Rome"}, {"type": "text", "text": "Oslo"}], "Rome\nOslo"),
    ):
        row = calling({"name": "f"})
        row["messages"][2]["content"] = content
        assert read(tmp_path, row).messages[2].content == text


def test_what_is_said_behind_a_call_is_not_put_before_it(tmp_path: Path) -> None:
    row = calling({"name": "f"}, content="First f.")
    row["messages"].insert(2, {"role": "assistant", "content": "Now g.", "tool_calls": [{"name": "g"}]})
    with pytest.raises(DataError, match=r'says "Now g\." behind a call'):
        read(tmp_path, row)
    row["messages"][2]["content"] = ""
    assert [call.name for call in read(tmp_path, row).messages[1].tool_calls or []] == ["f", "g"]


@pytest.mark.parametrize(
    ("calls", "results", "problem"),
    [
        ([("f", 1), ("g", 2)], [(1, None), (1, None)], "two results are of the call"),
        ([("f", 1), ("g", 1)], [(1, None), (1, None)], "two calls of one turn have the same id"),
        ([("f", None), ("g", None)], [(None, "zzz")], "a result is of .zzz., which no call before it is of"),
        ([("f", 1)], [(3, None)], "none before it has this id"),
        ([("f", 1), ("g", 2)], [(2, "f"), (1, "g")], "stands where"),
    ],
)
def test_a_result_that_contradicts_its_calls_is_refused(
    tmp_path: Path, calls: list[Any], results: list[Any], problem: str
) -> None:
    row = calling({"name": "f"})
    row["messages"][1]["tool_calls"] = [{"name": name, "id": number} for name, number in calls]
    row["messages"][2:3] = [
        {"role": "tool", "content": "Here.", "tool_call_id": number, "name": name} for number, name in results
    ]
    with pytest.raises(DataError, match=problem):
        read(tmp_path, row)

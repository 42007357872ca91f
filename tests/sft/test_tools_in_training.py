"""Demonstrations with tools through the SFT stage, and as `trueup data` shows and converts them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sft.train
from trueup.check import check
from trueup.data.formats import read_demonstrations
from trueup.data.records import Dropped
from trueup.inspecting.convert import convert

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ tools[0].function.description + '\n' if loop.first and tools }}"
    "{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<call>{{ call.function | tojson }}</call>{% endfor %}"
    "{{ eos_token if m.role == 'assistant' }}\n{% endfor %}{{ 'assistant: ' if add_generation_prompt }}"
)
TOOL = {"name": "warmth", "description": "SCHEMA"}


def row(n: int) -> dict[str, Any]:
    inner = {"name": "warmth", "arguments": json.dumps({"city": f"C{n}"})}
    call = {"id": f"c{n}", "type": "function", "function": inner}
    return {
        "messages": [
            {"role": "user", "content": f"How warm is city {n}?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": f"c{n}", "content": f"RESULT {n}"},
            {"role": "assistant", "content": f"It has {n}."},
        ],
        "tools": [TOOL],
    }


@pytest.fixture
def with_tools(campaign: Callable[..., Any], tmp_path: Path, jsonl: Callable[..., Path]) -> Callable[..., Any]:
    """The tiny campaign over rows with tools, by a template that writes them, or by one that does not."""

    def make(template: str, **sft: Any) -> Any:
        (tmp_path / "own.jinja").write_text(template, encoding="utf-8")
        jsonl(tmp_path / "tools.jsonl", [row(n) for n in range(20)])
        source = {"path": "tools.jsonl", **sft.pop("source", {})}
        return campaign(
            tmp_path,
            model={"chat_template": "own.jinja"},
            sft={"data": [source], "max_steps": 2, "max_length": 300, **sft},
        )

    return make


def test_rows_with_tools_are_trained_on_what_the_assistant_writes_and_answered_in_the_samples(
    with_tools: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[str, str]] = []
    build = sft.train.build_trainer

    def spy(config: Any, stage: Any, base: Any, rows: Any, heldout: Any) -> Any:
        for one in rows:
            trained = [label for label in one.labels if label >= 0]
            seen.append((base.tokenizer.decode(one.input_ids), base.tokenizer.decode(trained)))
        return build(config, stage, base, rows, heldout)

    monkeypatch.setattr(sft.train, "build_trainer", spy)
    folder = sft.train.run(with_tools(TEMPLATE).stages["sft"])
    of_tools = [(read, trained) for read, trained in seen if "How warm" in read]
    assert len(of_tools) > 10
    for read, trained in of_tools:
        assert "SCHEMA" in read and "RESULT" in read and "SCHEMA" not in trained and "RESULT" not in trained
        n = trained.partition("It has ")[2].partition(".")[0]
        end = "<|endoftext|>"
        assert trained == f'<call>{{"name": "warmth", "arguments": {{"city": "C{n}"}}}}</call>{end}It has {n}.{end}'
    said = capsys.readouterr().out
    assert "with tools, which the chat template writes (it takes the arguments of a call as object)" in said
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert samples, said
    asked = [one["prompt"] for one in samples if "How warm" in one["prompt"][0]["content"]]
    assert asked and all(prompt[0]["tools"] and prompt[-1]["role"] == "tool" for prompt in asked)
    assert "warmth" in (folder / "data.html").read_text(encoding="utf-8")


def test_check_refuses_by_file_and_line_what_the_template_does_not_write_and_drop_leaves_it_out(
    with_tools: Callable[..., Any], tmp_path: Path
) -> None:
    plain = TEMPLATE.replace("tools[0].function.description + '\n' if loop.first and tools", "''")
    for source in ({}, {"on_bad_rows": "drop"}):  # of this file no row is left
        problems = [text for text in check(with_tools(plain, source=source))[0] if "tools" in text]
        assert len(problems) == 1, problems
        assert f"sft.data: {tmp_path}/tools.jsonl:1: the chat template does not write tools" in problems[0]


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".parquet"])
@pytest.mark.parametrize("shape", ["messages", "sharegpt"])
def test_rows_with_tools_come_back_from_every_shape(
    tmp_path: Path, jsonl: Callable[..., Path], shape: str, ending: str
) -> None:
    rows = [row(n) for n in range(3)]
    arguments = [{"city": "Rome"}, {"days": 2, "places": ["a", None]}, {"city": 3, "deep": {"x": None}}]
    for one, values in zip(rows, arguments, strict=True):
        one["messages"][1]["tool_calls"][0]["function"]["arguments"] = json.dumps(values)
    rows[1]["messages"][1] |= {"content": "Let me see.", "weight": 0}
    rows[2]["tools"].append({"name": "clock", "parameters": {"properties": {"zone": {"type": "string"}}}})
    source = jsonl(tmp_path / "rows.jsonl", rows)
    before = read_demonstrations(source, Dropped())
    assert convert(source, tmp_path / f"new{ending}", shape, "refuse", [])[0] == 3
    after = read_demonstrations(tmp_path / f"new{ending}", Dropped())
    assert list(after) == list(before)
    assert [one.messages[1].tool_calls[0].arguments for one in after] == arguments  # type: ignore[index]


def test_a_table_whose_structs_have_all_keys_gives_each_call_its_own(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def said(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        calls = [{"type": "function", "function": {"name": name, "arguments": arguments}}]
        turns = [{"role": "user", "content": name}, {"role": "assistant", "content": "", "tool_calls": calls}]
        return {"messages": turns, "tools": [{"name": name, "parameters": {"properties": {name: {"type": "string"}}}}]}

    pq.write_table(pa.Table.from_pylist([said("a", {"x": 1}), said("b", {"y": "z"})]), tmp_path / "rows.parquet")
    rows = read_demonstrations(tmp_path / "rows.parquet", Dropped())
    assert [row.messages[1].tool_calls[0].arguments for row in rows] == [{"x": 1}, {"y": "z"}]  # type: ignore[index]
    properties = [row.messages[0].tools[0]["function"]["parameters"]["properties"] for row in rows]  # type: ignore[index]
    assert properties == [{"a": {"type": "string"}}, {"b": {"type": "string"}}]

"""Rows of any format in the shapes that other tools read."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from trueup.data.formats import ImportedRanking, read_demonstrations, read_preferences
from trueup.data.pairs import pairs_of
from trueup.data.records import Demonstration, Dropped, Message
from trueup.data.row_rules import BadRows
from trueup.errors import DataError, TrueupError, require_new, writing
from trueup.files import Json, write_atomically
from trueup.models.templates.tools import has_tools


def convert(
    source: Path, target: Path, shape: str, on_bad_rows: BadRows, ignore_columns: Sequence[str]
) -> tuple[int, Dropped]:
    """Write the rows of a file in another shape. Returns their number, and what was left out.

    target  a new file; its ending says what kind: .jsonl, .json, .csv or .parquet
    """
    require_new(target)
    write = WRITERS.get(target.suffix)
    if write is None:
        raise TrueupError(f"{target}: expected a name that ends in {', '.join(WRITERS)}")
    if shape == "kto" and target.suffix == ".csv":
        raise TrueupError(f"{target}: a table has no place for conversations with a mark each: write .jsonl")
    dropped = Dropped()
    if shape in PREFERENCE_SHAPES:
        rankings = read_preferences(source, dropped, on_bad_rows, ignore_columns)
        rows = [one for row in rankings for one in PREFERENCE_SHAPES[shape](row, dropped)]
    else:
        demonstrations = read_demonstrations(source, dropped, on_bad_rows, ignore_columns)
        rows = [one for row in demonstrations for one in DEMONSTRATION_SHAPES[shape](row, dropped)]
    if not rows:
        raise DataError(f"{source}: no row of it can be written as {shape} (left out: {dropped})")
    with writing(target):
        write(target, rows)
    return len(rows), dropped


# ---- Shapes -----------------------------------------------------------------------------------------------------


def _category(category: str | None) -> Json:
    return {"category": category} if category else {}


def _said(message: Message) -> Json:
    calls = [
        {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        | ({"id": call.id} if call.id else {})
        for call in message.tool_calls or []
    ]
    values = {"role": message.role, "content": message.content, "tool_calls": calls} | _of_result(message)
    return {key: value for key, value in values.items() if value or key != "tool_calls"}


def _of_result(message: Message) -> Json:
    """The tool and the call that a result is of, where it says so."""
    values = {"name": message.name, "tool_call_id": message.tool_call_id}
    return {key: value for key, value in values.items() if value}


def _tools(row: Demonstration) -> Json:
    return {"tools": row.messages[0].tools} if row.messages[0].tools else {}


def _messages(row: Demonstration, dropped: Dropped) -> list[Json]:
    """OpenAI's and TRL's; a turn that carries no loss has the weight 0, as OpenAI writes it."""
    turns = [_said(one) | ({} if one.trained or one.role != "assistant" else {"weight": 0}) for one in row.messages]
    return [{"messages": turns, **_tools(row), **_category(row.category)}]


def _alpaca(row: Demonstration, dropped: Dropped) -> list[Json]:
    """Instruction and output, with what LLaMA-Factory adds to them: a system message, and earlier turns as pairs."""
    turns = list(row.messages)
    if has_tools(turns):
        dropped.add("tools, which alpaca has no place for")
        return []
    system = turns.pop(0).content if turns[0].role == "system" else ""
    if any(turn.role != ("user", "assistant")[i % 2] for i, turn in enumerate(turns)):
        dropped.add("turns that alpaca has no place for")
        return []
    if any(not turn.trained for turn in turns if turn.role == "assistant"):
        dropped.add("a turn without loss, which alpaca cannot mark")
        return []
    pairs = [[turns[i].content, turns[i + 1].content] for i in range(0, len(turns), 2)]
    *earlier, (question, answer) = pairs
    more: Json = ({"system": system} if system else {}) | ({"history": earlier} if earlier else {})
    return [{"instruction": question, "input": "", "output": answer, **more, **_category(row.category)}]


def _sharegpt(row: Demonstration, dropped: Dropped) -> list[Json]:
    """With tools as LLaMA-Factory has them: a turn `function_call` of JSON, and `observation`."""
    names = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}
    turns = []
    for one in row.messages:
        more = _of_result(one) | ({} if one.trained or one.role != "assistant" else {"weight": 0})
        if one.content or not one.tool_calls:
            turns.append({"from": names[one.role], "value": one.content, **more})
        if one.tool_calls:
            calls = [call.model_dump(mode="json") for call in one.tool_calls]
            text = json.dumps(calls[0] if len(calls) == 1 else calls, ensure_ascii=False)
            turns.append({"from": "function_call", "value": text, **more})
    tools = {key: json.dumps(value, ensure_ascii=False) for key, value in _tools(row).items()}
    return [{"conversations": turns, **tools, **_category(row.category)}]


def _preference(row: ImportedRanking, dropped: Dropped) -> list[Json]:
    """TRL's conversational pairs; a ranking gives all of its strict pairs."""
    pairs = pairs_of(row.ranking())
    if not pairs:
        dropped.add("tie: neither answer is preferred")
    return [
        {
            "prompt": [_said(one) for one in row.prompt],
            "chosen": [_said(one) for one in pair.chosen],
            "rejected": [_said(one) for one in pair.rejected],
            "annotator": row.annotator,
            **({"strength": row.strength} if row.strength else {}),
            **_category(row.category),
        }
        for pair in pairs
    ]


def _kto(row: ImportedRanking, dropped: Dropped) -> list[Json]:
    """TRL's unpaired rows: the answers of the first tier are good and those of the last are bad. Of a tie both are bad
    if the row says so, and else nothing is known of them."""
    if len(row.tiers) == 1 and not row.both_bad:
        dropped.add("tie: neither answer is good or bad")
        return []
    labels = {index: False for index in row.tiers[-1]}
    if len(row.tiers) > 1:
        labels |= {index: True for index in row.tiers[0]}
    return [
        {
            "prompt": [_said(one) for one in row.prompt],
            "completion": [{"role": "assistant", "content": row.completions[index]}],
            "label": good,
            "annotator": row.annotator,
            **_category(row.category),
        }
        for index, good in sorted(labels.items())
    ]


DEMONSTRATION_SHAPES: dict[str, Callable[[Demonstration, Dropped], list[Json]]] = {
    "messages": _messages,
    "alpaca": _alpaca,
    "sharegpt": _sharegpt,
}
PREFERENCE_SHAPES: dict[str, Callable[[ImportedRanking, Dropped], list[Json]]] = {
    "preference": _preference,
    "kto": _kto,
}


# ---- Files ------------------------------------------------------------------------------------------------------


def _write_jsonl(path: Path, rows: Iterable[Json]) -> None:
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _write_json(path: Path, rows: list[Json]) -> None:
    write_atomically(path, json.dumps(rows, ensure_ascii=False, indent=1) + "\n")


def _write_csv(path: Path, rows: list[Json]) -> None:
    """A conversation is JSON in its cell."""
    names = _names(rows)
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(names)
    for row in rows:
        table.writerow([_cell(row.get(name, "")) for name in names])
    write_atomically(path, text.getvalue())


def _names(rows: list[Json]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _cell(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], list):
        raise TrueupError("earlier turns as pairs have no place in a table: write .jsonl, or another shape")
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _write_parquet(path: Path, rows: list[Json]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = _names(rows)  # by itself pyarrow takes those of the first row
    cells = [{name: _cell_of_table(name, row.get(name)) for name in names} for row in rows]
    pq.write_table(pa.Table.from_pylist(cells), path)


def _cell_of_table(name: str, value: Any) -> Any:
    """Tools, and arguments of calls, as JSON text: a column has one type, and each tool has other parameters."""
    if not isinstance(value, list):
        return value
    if name == "tools":
        return json.dumps(value, ensure_ascii=False)
    for turn in value:
        for call in turn.get("tool_calls", []) if isinstance(turn, dict) else []:
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    return value


WRITERS: dict[str, Callable[[Path, list[Json]], None]] = {
    ".jsonl": _write_jsonl,
    ".json": _write_json,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
}

"""Malformed rows of thirty kinds and more, in every container, for every reader: each is named with its file and place,
no other row is lost, and nothing but a DataError comes out.

`TRUEUP_MALFORMED=1000 pytest -s tests/trueup/data/test_malformed.py` reads a thousand of them per reader and container
and prints how many.
"""

from __future__ import annotations

import csv
import json
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from containers import WRITERS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trueup.data.formats import SHOWN_PROBLEMS, read_demonstrations, read_preferences, read_prompts
from trueup.data.records import Dropped
from trueup.errors import DataError

LEAST = int(os.environ.get("TRUEUP_MALFORMED", "0"))
"""Malformed rows per reader and container; each kind comes once at least."""
READERS: dict[str, Any] = {
    "demonstrations": read_demonstrations,
    "prompts": read_prompts,
    "preferences": read_preferences,
}
Row = dict[str, Any]


def user(text: Any) -> Row:
    return {"role": "user", "content": text}


def assistant(text: Any) -> Row:
    return {"role": "assistant", "content": text}


CONVERSATIONS: list[Any] = [
    [{"role": "nobody", "content": "a"}],
    [{"role": "user"}],
    [{"role": "tool", "content": "a"}],
    [{"role": "system", "content": "a"}],
    [user(3)],
    [user(None)],
    [user({"a": 1})],
    [user("")],
    [user(" \n")],
    [user("a\0")],
    [assistant("first")],
    [assistant("a"), user("b")],
    [user("a"), user("b")],
    [user("a"), assistant("b"), assistant("c")],
    [user("a"), assistant(""), user("b")],
    [user("a"), {"role": "nobody", "content": "b"}, user("c")],
]
"""No conversation, whether they stand as a list or as JSON text."""
VALUES: list[Any] = [3, -1.5, True, {}, {"a": 1}, ["a", 3], [3], [[]], [{"content": "a"}], []]
"""No text and no conversation; as text in a table they are a text."""
TEXTS: list[Any] = ["a\0", " ", "", None]
"""No text that asks for something."""
GOOD: dict[str, Row] = {
    "demonstrations": {"prompt": "Which {n}?", "completion": "This {n}."},
    "prompts": {"prompt": "Which {n}?"},
    "preferences": {"prompt": "Which {n}?", "chosen": "This {n}.", "rejected": "That {n}."},
}
ANSWERED = [value for value in CONVERSATIONS if value != [assistant("first")]]
"""Wrong answers: an answer may be a message of the assistant's."""


def good(use: str, n: int) -> Row:
    return {key: value.replace("{n}", str(n)) for key, value in GOOD[use].items()}


def malformed(use: str, as_text: bool) -> list[Row]:
    """One row of each kind. as_text: all values are texts, conversations JSON texts; a number is then a text."""
    wrong = [("prompt", value) for value in [*CONVERSATIONS, *TEXTS, *([] if as_text else VALUES)]]
    rows = [{**good(use, 1000 + i), key: value} for i, (key, value) in enumerate(wrong)]
    if use == "demonstrations":
        rows += [{"messages": value} for value in [*CONVERSATIONS, *VALUES]]
    if not as_text:
        keys = {"demonstrations": ["completion"], "prompts": [], "preferences": ["chosen", "rejected"]}[use]
        values = [value for value in [*ANSWERED, *VALUES] if value is not True]
        rows += [{**good(use, 2000 + i), key: value} for i, value in enumerate(values) for key in keys]
        rows += [{"unheard": "of"}, {}, {"conversations": {}}]
    return rows


def beside(row: Row, use: str, n: int) -> Row:
    """A good row whose columns hold messages where those of `row` do, so that one table can hold both."""
    roles = {"prompt": "user", "completion": "assistant", "chosen": "assistant", "rejected": "assistant"}
    return {
        key: [{"role": roles[key], "content": text}] if isinstance(row.get(key), list) else text
        for key, text in good(use, n).items()
    }


def as_texts(row: Row) -> Row:
    plain = {key: "" if value is None else value for key, value in row.items()}
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in plain.items()}


def write_table(delimiter: str, ending: str) -> Callable[[Sequence[Row], Path], Path]:
    def write(rows: Sequence[Row], folder: Path) -> Path:
        names = list(dict.fromkeys(name for row in rows for name in row))
        with (folder / f"rows.{ending}").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names, delimiter=delimiter, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        return folder / f"rows.{ending}"

    return write


TABLES = {"csv": write_table(",", "csv"), "tsv": write_table("\t", "tsv")}
OF_TEXTS = {**TABLES, "parquet": WRITERS["parquet"], "arrow file": WRITERS["arrow file"]}
PLACES = {"jsonl": ":{n}", "json": ": entry {n}", "csv": ":{line}", "tsv": ":{line}"}
"""How a row is named; by its number in the others."""


def is_found(use: str, container: str, rows: Sequence[Row], bad: set[int], path: Path) -> None:
    """The rows at the places `bad` are named there and the others are read."""
    place = PLACES.get(container, ": row {n}")
    places = [f"{path}{place.format(n=n, line=n + 1)}" for n in range(1, len(rows) + 1)]
    kept = READERS[use](path, dropped := Dropped(), "drop")
    assert sorted(row.where for row in dropped.left_out) == sorted(places[n] for n in bad)
    assert [row.where for row in kept] == [place for n, place in enumerate(places) if n not in bad]
    assert all(row.problem.strip() for row in dropped.left_out)
    with pytest.raises(DataError) as refused:
        READERS[use](path, Dropped())
    message = str(refused.value)
    assert sum(f"{places[n]}: " in message for n in bad) >= min(len(bad), SHOWN_PROBLEMS), message[:500]


def mixed(use: str, kinds: Sequence[Row], draw: random.Random) -> tuple[list[Row], set[int]]:
    """Malformed rows of all kinds among as many good ones, and their places."""
    bad = [dict(row) for row in kinds] * max(1, -(-LEAST // len(kinds)))
    rows = [(row, True) for row in bad] + [(good(use, n), False) for n in range(len(bad) + 1)]
    draw.shuffle(rows)
    return [row for row, _ in rows], {n for n, (_, is_bad) in enumerate(rows) if is_bad}


def told(use: str, container: str, bad: int, kinds: int) -> None:
    print(f"{use} in {container}: {bad} malformed rows of {kinds} kinds, each named, no other lost")


ONCE = settings(
    max_examples=1 if LEAST else 2,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.mark.parametrize("container", ["jsonl", "json"])
@pytest.mark.parametrize("use", READERS)
@ONCE
@given(draw=st.randoms(use_true_random=False))
def test_among_values_of_any_type(use: str, container: str, draw: random.Random, tmp_path: Path) -> None:
    kinds = malformed(use, as_text=False)
    assert len(kinds) >= 30
    rows, bad = mixed(use, kinds, draw)
    is_found(use, container, rows, bad, WRITERS[container](rows, tmp_path))
    told(use, container, len(bad), len(kinds))


@pytest.mark.parametrize("container", OF_TEXTS)
@pytest.mark.parametrize("use", READERS)
@ONCE
@given(draw=st.randoms(use_true_random=False))
def test_among_texts_in_a_table(use: str, container: str, draw: random.Random, tmp_path: Path) -> None:
    kinds = malformed(use, as_text=True)
    rows, bad = mixed(use, kinds, draw)
    rows = [as_texts(row) for row in rows]
    path = OF_TEXTS[container](rows, tmp_path)
    is_found(use, container, rows, bad, path)
    told(use, container, len(bad), len(kinds))


@pytest.mark.parametrize("container", ["parquet", "arrow file"])
@pytest.mark.parametrize("use", READERS)
def test_in_a_column_of_one_type(use: str, container: str, tmp_path: Path) -> None:
    """A kind at a time, since the values of a column have one type; those that no column holds beside texts are left
    out."""
    count = kinds = 0
    for number, row in enumerate(malformed(use, as_text=False)):
        copies = max(2, -(-LEAST // 20))
        rows = [beside(row, use, n) for n in range(copies + 1)] + [row] * copies
        order = random.Random(number).sample(range(len(rows)), len(rows))
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            path = WRITERS[container]([rows[i] for i in order], folder)
        except pyarrow.ArrowException:
            continue
        is_found(use, container, rows, {n for n, i in enumerate(order) if i > copies}, path)
        kinds, count = kinds + 1, count + copies
    assert kinds >= 12
    told(use, f"{container} with types", count, kinds)


@pytest.mark.parametrize("container", TABLES)
@pytest.mark.parametrize("use", READERS)
def test_with_too_many_or_too_few_cells(use: str, container: str, tmp_path: Path) -> None:
    rows = [good(use, n) for n in range(8)]
    path = TABLES[container](rows, tmp_path)
    lines, delimiter = path.read_text().split("\n"), "," if container == "csv" else "\t"
    lines[3] += f"{delimiter}more"
    lines[6] = lines[6].rpartition(delimiter)[0] if delimiter in lines[6] else f"{lines[6]}{delimiter}{delimiter}"
    path.write_text("\n".join(lines))
    is_found(use, container, rows, {2, 5}, path)

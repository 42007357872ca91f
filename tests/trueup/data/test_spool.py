"""Large files: their rows lie on disk, are the same rows, and are read once."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trueup.data.containers import spool
from trueup.data.containers.choice import Choice
from trueup.data.containers.spool import Seen, Spool
from trueup.data.formats import reading
from trueup.data.records import Dropped
from trueup.errors import DataError
from trueup.provenance import contents

READERS = {"demonstrations": reading.read_demonstrations, "prompts": reading.read_prompts}


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """600 rows, with ten duplicates, ten bad rows, a column that is not read; the cache is empty."""
    monkeypatch.setenv("TRUEUP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(spool, "_CHUNK", 100)
    values: list[Any] = [
        {"prompt": f"Question {n % 590}?", "completion": f"Answer {n % 590}", "category": "qa", "note": "x"}
        for n in range(600)
    ]
    values[300:300] = [{"prompt": 3}] * 10
    (path := tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in values))
    return path


@pytest.fixture
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "LARGE_BYTES", 0)


@pytest.mark.parametrize("most", [None, 100, 0.5])
@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_a_large_file_gives_the_same_rows_at_its_first_reading_and_later(
    reader: Callable[..., Any], most: float | None, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read() -> tuple[Any, Dropped]:
        return reader(rows, dropped := Dropped(), "drop", (), Choice(most=most, seed=4)), dropped

    small, of_small = read()
    assert isinstance(small, list)
    monkeypatch.setattr(spool, "LARGE_BYTES", 0)
    for _ in range(2):
        large, of_large = read()
        assert isinstance(large, Spool) and list(large) == small and of_large == of_small
        assert [row.where for row in large] == [row.where for row in small]
        assert (large[7], large[-1], list(large[5:9])) == (small[7], small[-1], small[5:9])
        monkeypatch.setattr(reading, "_convert", None)  # the second time no row is read


@pytest.mark.usefixtures("everything_is_large")
def test_what_a_reading_depends_on_makes_it_another_one(rows: Path) -> None:
    def names(*rules: Any, path: Path = rows) -> set[Path]:
        READERS["demonstrations"](path, Dropped(), "drop", *rules)
        return set((contents.cache_dir() / "rows").iterdir())

    counts = [
        len(names()),
        len(names((), Choice(most=5, seed=1))),  # drawn from the same rows
        len(names(["note"])),
        len(names((), Choice(conditions={"category": "qa"}))),
    ]
    with rows.open("a") as file:
        file.write(json.dumps({"prompt": "One more?", "completion": "Yes"}) + "\n")
    counts.append(len(names()))
    READERS["prompts"](rows, Dropped(), "drop")
    counts.append(len(names()))
    assert counts == [1, 1, 2, 3, 4, 5]


@pytest.mark.usefixtures("everything_is_large")
def test_a_large_file_that_is_refused_leaves_nothing_and_names_its_rows(rows: Path) -> None:
    with pytest.raises(DataError, match=r"10 problems\n  .*rows\.jsonl:301: "):
        READERS["demonstrations"](rows, Dropped(), "refuse")
    assert not [file for file in (contents.cache_dir() / "rows").rglob("*") if file.is_file()]


def test_numbers_that_were_met_before_are_known_whatever_their_bits() -> None:
    draws = random.Random(0)
    numbers = [draws.choice((0, 1, 2**64 - 1, draws.getrandbits(64), draws.getrandbits(12) << 52)) for _ in range(9000)]
    seen, known = Seen(), set[int]()
    for number in numbers:
        assert seen.add(number or 1) is ((number or 1) not in known)
        known.add(number or 1)

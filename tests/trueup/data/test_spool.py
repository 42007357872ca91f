"""Large files: their rows lie on disk, are the same rows, and are read once."""

from __future__ import annotations

import gzip
import json
import os
import random
import resource
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from trueup.data.containers import spool
from trueup.data.containers.choice import Choice
from trueup.data.containers.spool import Seen, Spool, rows_at, spooled
from trueup.data.formats import reading
from trueup.data.records import Dropped, Prompt
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


# ---- The cache --------------------------------------------------------------------------------------------------


def _cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "rows are cut": lambda folder: _cut(folder / "rows.arrow"),
    "rows are missing": lambda folder: (folder / "rows.arrow").unlink(),
    "the report is cut": lambda folder: _cut(folder / "report.json"),
    "the report is empty": lambda folder: (folder / "report.json").write_text(""),
    "the report is of another version": lambda folder: (folder / "report.json").write_text('{"counts": {}}'),
    "the report is no report": lambda folder: (folder / "report.json").write_text("[]"),
}


@pytest.mark.usefixtures("everything_is_large")
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_cache_is_written_again(damage: Callable[[Path], Any], rows: Path) -> None:
    before = list(reading.read_prompts(rows, of_before := Dropped(), "drop"))
    (folder,) = (contents.cache_dir() / "rows").iterdir()
    damage(folder)
    assert list(reading.read_prompts(rows, of_now := Dropped(), "drop")) == before and of_now == of_before


@pytest.mark.usefixtures("everything_is_large")
def test_what_killed_processes_left_is_removed_and_what_others_write_now_is_not(rows: Path) -> None:
    old, young = (contents.cache_dir() / "rows" / "another" / f"rows.arrow.{n}.partial" for n in (7, 8))
    old.parent.mkdir(parents=True)
    for file, hours in ((old, 25), (young, 23)):
        file.write_text("half")
        os.utime(file, (then := time.time() - hours * 3600, then))
    reading.read_prompts(rows, Dropped(), "drop")
    assert not old.exists() and young.exists()


def test_one_of_several_that_want_the_same_writes_it_and_a_killed_one_leaves_nothing_there(
    rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written, is_written = list[Path](), threading.Event()

    def write(folder: Path) -> dict[str, Any]:
        assert not list(folder.glob("*.partial"))
        written.append(folder)
        is_written.wait(10)
        return {"a": 1}

    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(spool.cache_entry, "rows", "key", write)
        while not written:
            time.sleep(0.01)
        others = [pool.submit(spool.cache_entry, "rows", "key", write) for _ in range(2)]
        while "waiting for it" not in capsys.readouterr().out:
            time.sleep(0.01)
        is_written.set()
        assert [one.result() for one in (first, *others)] == [(written[0], {"a": 1})] * 3
    assert len(written) == 1
    (written[0] / "report.json").unlink()
    (written[0] / "rows.arrow.1.partial").write_text("half")
    spool.cache_entry("rows", "key", write)
    assert len(written) == 2


def test_a_file_that_changes_while_it_is_read_is_refused_and_nothing_is_kept_of_it(rows: Path) -> None:
    def read(_: Dropped) -> Iterator[Prompt]:
        with rows.open("a") as file:
            file.write("{}\n")
        yield Prompt.model_validate({"prompt": [{"role": "user", "content": "Why?"}]})

    with pytest.raises(DataError, match=r"rows\.jsonl: was changed while it was read; start again"):
        spooled(rows, Prompt, [], Dropped(), read)
    assert not [file for file in (contents.cache_dir() / "rows").rglob("*") if file.is_file()]


@pytest.mark.usefixtures("everything_is_large")
@pytest.mark.parametrize("is_full", [False, True], ids=["no folder can be there", "the disk is full"])
def test_a_cache_that_cannot_be_written_is_named_with_what_to_do(is_full: bool, rows: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if is_full:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))  # as a full disk, but for the number of the error
    else:
        contents.cache_dir().write_text("a file")
    try:
        with pytest.raises(DataError, match=r"cache/rows/\w+: cannot keep the rows .* TRUEUP_CACHE"):
            reading.read_prompts(rows, Dropped(), "drop")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not [file for file in (contents.cache_dir() / "rows").rglob("*") if file.is_file()]


def test_a_packed_file_counts_by_what_its_rows_take(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (packed := tmp_path / "packed.jsonl.gz").write_bytes(gzip.compress(rows.read_bytes()))
    monkeypatch.setattr(spool, "LARGE_BYTES", packed.stat().st_size + 1)
    assert spool.is_large(packed) and spool.is_large(rows)
    monkeypatch.setattr(spool, "LARGE_BYTES", rows.stat().st_size + 1)
    assert not spool.is_large(rows)


def test_what_other_code_wrote_is_written_anew(rows: Path, tmp_path: Path) -> None:
    (module := tmp_path / "module.py").write_text("")
    folders = set()
    for text in ("def write(folder): return {}", "def write(folder): return {} or {}"):
        module.write_text(text)
        spool.code_of.cache_clear()  # as in another process
        exec(compile(text, str(module), "exec"), space := dict[str, Any]())
        folders |= {spool.cache_entry("rows", "key", space["write"])[0] for _ in range(2)}
    assert len(folders) == 2
    assert spool.code_of("data") != spool.code_of("models"), "nor does one room stand for another"


def test_numbers_that_were_met_before_are_known_whatever_their_bits() -> None:
    draws = random.Random(0)
    numbers = [draws.choice((0, 1, 2**64 - 1, draws.getrandbits(64), draws.getrandbits(12) << 52)) for _ in range(9000)]
    seen, known = Seen(), set[int]()
    for number in numbers:
        assert seen.add(number or 1) is ((number or 1) not in known)
        known.add(number or 1)


def test_an_input_that_cannot_be_read_is_named_and_not_the_cache(rows: Path) -> None:
    def read(dropped: Dropped) -> Iterator[Prompt]:
        yield Prompt.model_validate({"prompt": "Why?"})
        raise OSError(5, "Input/output error")

    with pytest.raises(DataError, match=r"rows\.jsonl: cannot be read \(Input/output error\)$"):
        spooled(rows, Prompt, [], Dropped(), read)

    def remove(dropped: Dropped) -> Iterator[Prompt]:
        rows.unlink()
        yield Prompt.model_validate({"prompt": "Why?"})

    with pytest.raises(DataError, match=r"rows\.jsonl: (no such file|cannot be read)"):
        spooled(rows, Prompt, [], Dropped(), remove)


@pytest.mark.usefixtures("everything_is_large")
def test_rows_in_any_order_are_those_of_a_list(rows: Path) -> None:
    spool_rows = reading.read_prompts(rows, Dropped(), "drop")
    as_list = list(spool_rows)
    draw = random.Random(3)
    for count in (0, 1, 50, 590):
        indices = draw.choices(range(-590, 590), k=count)
        assert list(rows_at(spool_rows, indices)) == rows_at(as_list, indices) == [spool_rows[i] for i in indices]
    assert list(spool_rows[500:20:-7][3:]) == as_list[500:20:-7][3:]
    with pytest.raises(IndexError):
        spool_rows[590]


@pytest.mark.parametrize("least_bytes", [0, spool.LARGE_BYTES])
def test_questions_beyond_those_that_are_kept_are_counted(
    least_bytes: int, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "LARGE_BYTES", least_bytes)
    monkeypatch.setattr(reading, "MOST_PLACES", 500)
    for _ in range(2):
        reading.read_prompts(rows, dropped := Dropped(), "drop", [])
        assert (len(dropped.places), dropped.not_placed) == (500, 90)

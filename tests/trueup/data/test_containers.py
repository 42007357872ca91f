"""Rows in every container: the same entries as in JSON Lines, and whatever is wrong is named with file and row."""

from __future__ import annotations

import csv
import datetime
import decimal
import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pyarrow.parquet as pq
import pytest
from containers import TYPED, WRITERS, lines, table
from hub import Hub
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trueup.data.containers.reading import read_entries
from trueup.data.containers.text import document
from trueup.data.formats import read_demonstrations, read_preferences, read_prompts
from trueup.data.jsonl import Unreadable
from trueup.data.records import Dropped
from trueup.errors import DataError
from trueup.provenance.inputs import absolute, elsewhere, sha256_of, why_changed

CASES = Path(__file__).parents[2] / "data" / "cases"
READERS: dict[str, Any] = {
    "sft.data": read_demonstrations,
    "sample.prompts": read_prompts,
    "labels import": read_preferences,
}
SHAPES = json.loads((CASES / "shapes.json").read_text())


def refusal(path: Path, reader: Any = read_demonstrations) -> str:
    with pytest.raises(DataError) as error:
        reader(path, Dropped())
    return str(error.value)


def result(reader: Any, path: Path) -> Any:
    """All that comes of a file, but for where it stands."""
    dropped = Dropped()
    try:
        rows = reader(path, dropped, "drop")
    except DataError:
        return "refused"
    return [row.model_dump(exclude={"where"}) for row in rows], dropped.counts, dropped.ignored


@pytest.mark.parametrize("container", WRITERS)
def test_each_container_of_the_same_rows_gives_what_their_lines_give(container: str, tmp_path: Path) -> None:
    compared = 0
    for number, shape in enumerate(SHAPES):
        rows = [value for _, value in read_entries(CASES / "shapes" / shape["file"]) if isinstance(value, dict)] * 2
        reader = READERS[shape["use"]]
        folders = [tmp_path / f"{number}", tmp_path / f"{number}-lines"]
        for folder in folders:
            folder.mkdir()
        try:
            path = WRITERS[container](rows, folders[0])
        except pyarrow.ArrowException:
            assert container in TYPED  # two rows have values of two types in one column
            continue
        compared += 1
        assert result(reader, path) == result(reader, WRITERS["jsonl"](rows, folders[1])), shape["file"]
    assert compared > 0.9 * len(SHAPES)


def test_a_table_of_texts_gives_what_its_lines_give(tmp_path: Path) -> None:
    rows = [{"prompt": 'Say "a, b"\nthen\tc', "completion": "Ä"}, {"prompt": "Why?", "completion": "So\r\nit is."}]
    for ending, delimiter in ((".csv", ","), (".tsv", "\t")):
        with (tmp_path / f"rows{ending}").open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, ["prompt", "completion"], delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
        packed = tmp_path / f"rows{ending}.gz"
        packed.write_bytes(gzip.compress((tmp_path / f"rows{ending}").read_bytes()))
        for path in (tmp_path / f"rows{ending}", packed):
            assert [value for _, value in read_entries(path)] == rows


# ---- Bad rows ---------------------------------------------------------------------------------------------------

GOOD = {"prompt": "Which is it?", "completion": "This."}
BROKEN_LINES = """
{ | [ | {"prompt": "a" | {"prompt": "a",} | {'prompt': 'a'} | {prompt: "a"} | {"prompt": "a"} {"prompt": "b"} | text
{"prompt": "\\x"} | {"prompt": "\\u12"} | {"prompt": tru} | // {} | {"prompt" "a"} | {"prompt": "a}
""".strip()
UNSOUND = r"""
3 | null | true | "text" | [] | {} | {"prompt": "a", "prompt": "b", "completion": "c"} | {"x": NaN} | {"x": -Infinity}
{"x": 1e999} | {"prompt": "a\u0000", "completion": "b"} | {"prompt": "a\ud800", "completion": "b"} | {"a\ud800": "b"}
{"prompt": 3, "completion": "b"} | {"prompt": " ", "completion": "b"} | {"prompt": "a", "completion": ["b", 3]}
{"messages": 3} | {"messages": []} | {"messages": [3]} | {"messages": [{"role": "user"}]} | {"question": "a"} | {"x": 1}
{"messages": [{"role": "nobody", "content": "a"}]} | {"prompt": null, "completion": null} | {"conversations": {}}
""".strip()
LINES = [part.strip() for text in (BROKEN_LINES, UNSOUND) for line in text.split("\n") for part in line.split(" | ")]
LINES += ["[" * 5000 + "]" * 5000, '{"x": ' + "9" * 5000 + "}", '{"x": ' + "[" * 300 + "]" * 300 + "}"]
VALUES = [line for line in LINES[14:] if len(line) < 400]
"""Those that are JSON, and so may stand in a list."""


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.none() | st.sampled_from(LINES), min_size=1, max_size=12), data=st.data())
def test_every_bad_row_is_named_with_file_and_place_and_no_other_is_lost(
    rows: list[str | None], data: st.DataObject, tmp_path: Path
) -> None:
    rows = [None, *rows]  # a file of bad rows alone is refused
    names = ["rows.jsonl", "rows.jsonl.gz", *(["rows.json"] if set(rows) <= {None, *VALUES} else [])]
    path = tmp_path / data.draw(st.sampled_from(names))
    texts = [row or json.dumps({**GOOD, "prompt": f"Is it {n}?"}) for n, row in enumerate(rows)]
    content = "[" + ",\n".join(texts) + "]" if path.name == "rows.json" else "\n".join(texts)
    path.write_bytes(gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode())
    here = f"{path}: entry " if path.name == "rows.json" else f"{path}:"
    places = [f"{here}{n}" for n, row in enumerate(rows, start=1) if row]
    kept = read_demonstrations(path, dropped := Dropped(), "drop")
    assert [row.where for row in kept] == [f"{here}{n}" for n, row in enumerate(rows, start=1) if not row]
    assert [row.where for row in dropped.left_out] == places
    if places:
        message = refusal(path)
        assert all(f"{place}: " in message for place in places) and "Traceback" not in message


def test_at_least_thirty_kinds_of_bad_rows_are_tried() -> None:
    assert len(set(LINES)) >= 30


BAD_VALUES: dict[str, tuple[Any, Any, str]] = {
    "an infinite number": (pyarrow.float64(), float("inf"), "more: inf is no finite number"),
    "an infinite number in a list": (pyarrow.list_(pyarrow.float32()), [1.0, float("-inf")], "more.1: -inf is no"),
    "bytes that are no text": (pyarrow.binary(), b"\x89PNG\xff", "more: holds 5 bytes that are no text"),
    "bytes within": (
        pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()}),
        {"bytes": b"\xff", "path": None},
        "more.bytes: holds 1 bytes that are no text",
    ),
    "a duration": (pyarrow.duration("s"), datetime.timedelta(1), "more: is a duration[s], which JSON has not"),
    "a decimal of many digits": (
        pyarrow.decimal128(38, 30),
        decimal.Decimal("1.000000000000000000000000000001"),
        "more: 1.000000000000000000000000000001 has more digits than a number of JSON keeps",
    ),
    "a key twice in a map": (
        pyarrow.map_(pyarrow.string(), pyarrow.int8()),
        [("a", 1), ("a", 2)],
        "more: holds a key twice",
    ),
    "NUL": (pyarrow.string(), "a\0", "more: holds the character NUL"),
}


@pytest.mark.parametrize("kind", BAD_VALUES)
def test_a_value_that_json_has_not_is_named_by_row_and_column_and_can_be_left_out(kind: str, tmp_path: Path) -> None:
    type, value, problem = BAD_VALUES[kind]
    columns = {
        "prompt": ["1", "2", "3"],
        "completion": ["a", "b", "c"],
        "more": pyarrow.array([None, value, None], type),
    }
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    assert refusal(path).startswith(f"{path}: row 2: {problem}")
    assert len(read_demonstrations(path, Dropped(), "drop")) == 2
    assert len(read_demonstrations(path, Dropped(), ignore_columns=["more"])) == 3, "an unread column refuses nothing"


def test_values_with_types_come_out_as_a_json_row_has_them(tmp_path: Path) -> None:
    noon = datetime.datetime(2026, 1, 2, 12, tzinfo=datetime.UTC)
    arrays = {
        "time": pyarrow.array([noon, None], pyarrow.timestamp("ms", "UTC")),
        "day": pyarrow.array([datetime.date(2026, 1, 2), None]),
        "price": pyarrow.array([decimal.Decimal("1.50"), decimal.Decimal("2.00")]),
        "missing": pyarrow.array([float("nan"), 0.5]),
        "text": pyarrow.array([b"caf\xc3\xa9", None], pyarrow.binary()),
        "large": pyarrow.array(["a", "b"], pyarrow.large_string()),
        "word": pyarrow.array(["a", "b"]).dictionary_encode(),
        "map": pyarrow.array([[("k", 1.0)], None], pyarrow.map_(pyarrow.string(), pyarrow.float64())),
        "turns": pyarrow.array([[{"role": "user", "at": noon}, None], []]),
    }
    pyarrow.parquet.write_table(pyarrow.table(arrays), tmp_path / "rows.parquet")
    assert [value for _, value in read_entries(tmp_path / "rows.parquet")] == [
        {
            "time": "2026-01-02T12:00:00+00:00",
            "day": "2026-01-02",
            "price": 1.5,
            "missing": None,
            "text": "café",
            "large": "a",
            "word": "a",
            "map": {"k": 1.0},
            "turns": [{"role": "user", "at": "2026-01-02T12:00:00+00:00"}, None],
        },
        {
            **dict.fromkeys(("time", "day", "text", "map")),
            "price": 2,
            "missing": 0.5,
            "large": "b",
            "word": "b",
            "turns": [],
        },
    ]


# ---- Whole files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("container", [name for name in WRITERS if name not in ("folder", "pattern", "jsonl", "json")])
def test_a_file_that_is_cut_off_or_damaged_is_one_sentence_that_names_it(container: str, tmp_path: Path) -> None:
    """Cut anywhere, a packed file or a table is refused, or loses no row in silence."""
    rows = [{"prompt": f"Is it {n}?", "completion": f"{n * 7919} {n}" * 9} for n in range(40)]
    path = WRITERS[container](rows, tmp_path)
    path = path if path.is_file() else path / "data-00000-of-n.arrow"
    whole = path.read_bytes()
    count = len(list(read_entries(path)))
    for share in (0.3, 0.6, 0.9, 0.99):
        path.write_bytes(whole[: int(len(whole) * share)])
        try:
            assert len(list(read_entries(path))) == count, "only the end of the stream is missing"
        except DataError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)


def test_a_folder_without_rows_a_pattern_without_files_and_a_choice_of_splits_say_so(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("Rows.")
    assert refusal(tmp_path).startswith(f"{tmp_path}: this folder has no file of rows (")
    assert refusal(tmp_path).endswith("; it holds README.md")
    assert refusal(tmp_path / "*.jsonl") == f"{tmp_path}/*.jsonl: no file fits this pattern"
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        WRITERS["datasets directory"]([GOOD], tmp_path / split).rename(tmp_path / split / "s")
        for file in (tmp_path / split / "s").iterdir():
            file.rename(tmp_path / split / file.name)
        (tmp_path / split / "s").rmdir()
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert refusal(tmp_path) == f"{tmp_path}: holds the splits test, train; name one of them: {tmp_path}/test"
    assert len(read_demonstrations(tmp_path / "train", Dropped())) == 1


@pytest.mark.parametrize("name", ["rows.zip", "rows.jsonl"])
def test_an_archive_is_refused_by_its_content(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"PK\x03\x04" + b"\0" * 40)
    assert refusal(tmp_path / name).startswith(f"{tmp_path / name}: is a zip archive; unpack it")


def test_a_column_that_stands_twice_is_refused_by_name(tmp_path: Path) -> None:
    twice = pyarrow.table([["a"], ["b"]], names=["prompt", "prompt"])
    pyarrow.parquet.write_table(twice, tmp_path / "rows.parquet")
    assert "the column prompt stands twice" in refusal(tmp_path / "rows.parquet")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.lists(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
            max_leaves=8,
        ),
        max_size=8,
    ),
    chunk=st.integers(1, 40),
    indent=st.none() | st.integers(0, 3),
)
def test_a_list_read_in_pieces_of_any_size_is_the_list(
    values: list[Any], chunk: int, indent: Any, tmp_path: Path
) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(values, indent=indent), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trueup.data.containers.text._CHUNK", chunk)
        read = [value for _, value in document(path)]
    assert [one for one in read if not isinstance(one, Unreadable)] == [
        value for value, one in zip(values, read, strict=True) if not isinstance(one, Unreadable)
    ]


@pytest.mark.parametrize("container", ["jsonl", "json", "jsonl.gz", "jsonl.zst", "parquet", "datasets directory"])
def test_a_file_is_read_without_being_held(container: str, tmp_path: Path) -> None:
    rows = [{"prompt": f"{n} {'long ' * 200}", "completion": "b"} for n in range(12_000)]
    size = len(lines(rows))
    if container == "parquet":
        pyarrow.parquet.write_table(table(rows), tmp_path / "rows.parquet", row_group_size=1000)
        path = tmp_path / "rows.parquet"
    elif container == "datasets directory":
        (path := tmp_path / "rows.arrow").touch()
        with pyarrow.ipc.new_stream(path, table(rows).schema) as writer:
            writer.write_table(table(rows), max_chunksize=1000)
    else:
        path = WRITERS[container](rows, tmp_path)
    del rows
    tracemalloc.start()
    assert sum(1 for _ in read_entries(path)) == 12_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size > 11e6 and peak < 6e6, peak


def test_a_web_address_is_fetched_once_and_counts_by_its_content(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("TRUEUP_CACHE", str(tmp_path / "cache"))
    hub = Hub()
    repository = hub.model("datasets/owner/rows", {"rows.jsonl.gz": gzip.compress(lines([GOOD]))})
    with hub.served() as address:
        path = elsewhere(f"{address}/datasets/owner/rows/resolve/main/rows.jsonl.gz", tmp_path)
        assert path is not None
        for _ in range(2):
            [row] = read_demonstrations(path, Dropped())
        assert [line.partition(" ")[0] for line in hub.asked] == ["GET"] and row.messages[1].content == "This."
        before = sha256_of(path)
        assert why_changed(path, before, None) is None
        repository.push({"rows.jsonl.gz": gzip.compress(lines([GOOD, GOOD]))})
        next((tmp_path / "cache" / "fetched").iterdir()).unlink()
        asked = len(hub.asked)
        assert "is missing: it is no longer in" in (why_changed(path, before, None) or "") and len(hub.asked) == asked
        assert len(read_prompts(path, Dropped())) == 1
        assert why_changed(path, before, None) == f"{path} has changed"
        gone = elsewhere(f"{address}/datasets/owner/rows/resolve/main/none.jsonl", tmp_path)
        assert gone is not None
        assert refusal(gone) == f"{address}/datasets/owner/rows/resolve/main/none.jsonl: the server answers 404: " + (
            "correct the address"
        )


def test_a_missing_uuid_is_no_name(tmp_path: Path) -> None:
    ids = pyarrow.ExtensionArray.from_storage(pyarrow.uuid(), pyarrow.array([b"\0" * 16, None], pyarrow.binary(16)))
    table = pyarrow.table({"prompt": ["a", "b"], "chosen": ["c", "d"], "rejected": ["e", "f"], "annotator": ids})
    pq.write_table(table, tmp_path / "rows.parquet")
    names = [row.annotator for row in read_preferences(tmp_path / "rows.parquet", Dropped())]
    assert names[0].startswith("00000000-") and names[1] == "unknown"


def test_what_a_run_wrote_is_no_input_of_a_folder_around_it(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n')
    run = tmp_path / "runs" / "one" / "sft"
    run.mkdir(parents=True)
    (run.parent / "seals.jsonl").write_text("{}\n")
    (run / "left_out.jsonl").write_text('{"prompt": "b"}\n')
    assert [row.prompt[0].content for row in read_prompts(tmp_path, Dropped())] == ["a"]


def test_a_folder_without_the_splits_that_it_promises_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    with pytest.raises(DataError, match="no split that it names"):
        read_prompts(tmp_path, Dropped())


@pytest.mark.parametrize("name", ["plain", "with [brackets]"])
def test_a_pattern_works_below_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "rows.jsonl").write_text('{"prompt": "a"}\n')
    assert len(read_prompts(folder / "*.jsonl", Dropped())) == 1


def test_commas_stay_commas_in_a_name_with_another_ending_inside(tmp_path: Path) -> None:
    (tmp_path / "from.tsv.csv").write_text("prompt,category\na,b\n")
    assert read_prompts(tmp_path / "from.tsv.csv", Dropped())[0].category == "b"


@pytest.mark.parametrize("address", ["https://ann:pw@host/a.jsonl", "http://hf_abc@host/a", "https://h/a?token=abc"])
def test_an_address_with_a_secret_is_refused_and_the_secret_is_not_told(address: str) -> None:
    with pytest.raises(ValueError, match="holds a secret") as error:
        elsewhere(address, Path())
    assert not any(secret in str(error.value) for secret in ("pw", "hf_abc", "=abc"))


def test_whether_an_address_changed_is_found_out_without_asking_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("httpx.stream", lambda *_, **__: pytest.fail("it was asked"))
    assert "is missing" in (why_changed(Path("https:/host.example/rows.jsonl"), "00", {"rows.jsonl": "00"}) or "")


@pytest.mark.parametrize(
    "address",
    ["https://h/x.jsonl?author=smith&tokenizer=gpt2", "http://localhost:8000/data@v1/x.jsonl", "HTTPS://h/x.jsonl"],
)
def test_an_address_without_a_secret_is_an_address(address: str) -> None:
    path = elsewhere(address, Path())
    assert path is not None and absolute(path) == path


def test_files_of_a_folder_that_hold_no_rows_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"prompt": "Hi", "completion": "Hello"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    for name in ("README.md", ".hidden.txt", "dataset_info.json"):
        (tmp_path / name).write_text("{}")
    assert len(read_demonstrations(tmp_path, Dropped())) == 1 and capsys.readouterr().out == ""
    (tmp_path / "more").mkdir()
    for number in range(7):
        (tmp_path / "more" / f"{number}.txt").write_text("Hi")
    assert len(read_demonstrations(tmp_path, Dropped())) == 1
    said = capsys.readouterr().out
    assert f"{tmp_path}: 7 files hold no rows, by their names: more/0.txt, " in said and "more/4.txt and 2 more" in said

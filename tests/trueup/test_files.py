"""Files of a run: who reads one while it is written, or after the disk was full, sees the old or the whole new one."""

from __future__ import annotations

import ast
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from trueup import runs
from trueup.artifacts.artifact import Artifact
from trueup.config import StageConfig
from trueup.data.records import write_rows
from trueup.files import write_atomically

REPOSITORY = Path(__file__).parents[2]
PACKAGES = ("trueup", "sft", "reward", "rlhf", "ui")
LONG = "x" * 100_000


class Empty(StageConfig):
    stage = "sft"
    run = "nowhere:run"


class Note(Artifact):
    said: str


def a_stage(path: Path) -> runs.StageRun:
    return runs.StageRun(Empty(run_dir=path.parent), path.parent, False, [])


WRITERS: dict[str, Callable[[Path, str], None]] = {
    "a text": write_atomically,
    "parts of a text": lambda path, text: write_atomically(path, iter([text, text])),
    "a file that several processes write": lambda path, text: write_atomically(path, text, by_process=True),
    "rows": lambda path, text: write_rows(path, [{"text": text}]),
    "JSON of a stage": lambda path, text: a_stage(path).write_json(path.name, text),
    "a report": lambda path, text: a_stage(path).write_report(Note(said=text)),
}


@contextmanager
def full_disk() -> Iterator[None]:
    """No file gets longer than 10,000 bytes: the system refuses, as it does where no room is left."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("writer", WRITERS)
def test_a_file_that_cannot_be_written_whole_stays_as_it_was(tmp_path: Path, writer: str) -> None:
    path = tmp_path / "report.json"
    WRITERS[writer](path, "old")
    old = path.read_bytes()
    with full_disk(), pytest.raises(OSError):
        WRITERS[writer](path, LONG)
    assert path.read_bytes() == old and os.listdir(tmp_path) == [path.name]
    WRITERS[writer](path, LONG)
    assert len(path.read_bytes()) >= len(LONG) and os.listdir(tmp_path) == [path.name]


def test_rows_that_fail_on_their_way_leave_the_file_as_it_was(tmp_path: Path) -> None:
    def rows() -> Iterator[dict[str, int]]:
        yield {"row": 2}
        raise RuntimeError("the judge went away")

    write_rows(tmp_path / "rows.jsonl", [{"row": 1}])
    with pytest.raises(RuntimeError):
        write_rows(tmp_path / "rows.jsonl", rows())
    assert (tmp_path / "rows.jsonl").read_text() == '{"row": 1}\n' and len(os.listdir(tmp_path)) == 1


def test_a_file_gets_its_name_in_one_place_only() -> None:
    """Elsewhere a rename moves a folder, or what is never to replace a file that is there."""
    files = [file for package in PACKAGES for file in (REPOSITORY / package).rglob("*.py")]
    nodes = [(file, node) for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))]
    renames = {
        str(file.relative_to(REPOSITORY))
        for file, node in nodes
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and len(node.args) == 1
        if node.func.attr == "rename" or (node.func.attr == "replace" and not node.keywords)
    }
    folders = {"trueup/exporting/export.py", "trueup/models/sources/embedded.py", "ui/labels/exchange.py"}
    assert renames == {"trueup/files.py", *folders}

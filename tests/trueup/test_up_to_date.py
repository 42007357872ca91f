"""`run` says "up to date" only over bytes that still hash."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

import pytest

from trueup import runs
from trueup.campaign import why_stale
from trueup.config import StageConfig
from trueup.verify import verify


class First(StageConfig):
    stage: ClassVar[str] = "sft"
    run: ClassVar[str] = "nowhere:run"


@pytest.fixture
def made(tmp_path: Path) -> Path:
    stage = runs.begin(First(run_dir=tmp_path))
    (stage.dir / "model").mkdir()
    (stage.dir / "model/weights").write_text("some bytes")
    (stage.dir / "report.json").write_text("{}")
    stage.finish()
    assert why_stale(First(run_dir=tmp_path)) is None
    return tmp_path


@pytest.mark.parametrize("name", ["model/weights", "report.json", "config.yaml"])
def test_a_result_of_other_bytes_is_stale_even_with_its_size_and_time_kept(made: Path, name: str) -> None:
    path = made / "sft" / name
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert why_stale(First(run_dir=made)) == f"its {name} has changed since"
    path.unlink()
    assert why_stale(First(run_dir=made)) == f"its {name} is missing"


class Reader(First):
    path: Path

    def input_paths(self) -> list[Path]:
        return [self.path]


@pytest.mark.parametrize("name", ["rows", "rows/*.jsonl"])
def test_a_file_added_to_a_folder_makes_the_stage_stale_and_is_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "a.jsonl").write_text("{}\n")
    config = Reader(run_dir=tmp_path / "run", path=path)
    stage = runs.begin(config)
    stage.add_input(path, 1)
    stage.write_json("report.json", {})
    stage.finish()
    assert why_stale(config) is None and not verify(tmp_path / "run").problems
    (tmp_path / "rows" / "b.jsonl").write_text("{}\n")
    assert why_stale(config) == f"{path}: b.jsonl is new"
    (tmp_path / "rows" / "b.jsonl").rename(tmp_path / "rows" / "a.jsonl")
    (tmp_path / "rows" / "a.jsonl").write_text("[]\n")
    assert why_stale(config) == f"{path}: a.jsonl has changed"
    assert (
        f"{path}: input of sft, changed since sft read it ({path}: a.jsonl has changed)"
        in verify(tmp_path / "run").problems
    )
    (tmp_path / "rows" / "a.jsonl").unlink()
    assert why_stale(config) == f"{path} is missing"

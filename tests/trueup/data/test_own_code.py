"""Python of the user's own: what runs is what the file says now."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from trueup.data.own_code import load_own


def test_a_file_that_changed_within_a_second_is_read_anew_and_nothing_is_left_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    file, said = tmp_path / "rewards.py", []
    for number in (1, 2):
        file.write_text(f"def paid():\n    return {number}\n", encoding="utf-8")
        os.utime(file, (0, 0))
        said.append(load_own(f"{file}:paid", "")())
    assert said == [1, 2] and [path.name for path in tmp_path.iterdir()] == ["rewards.py"]

"""The align stage on a tiny policy and imported labels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ui.label.run
from trueup import runs
from trueup.models import loading
from trueup.runs import find_stage
from trueup.stages import load_object

PAIRS = [
    {"prompt": f"Question {i}: tea or milk?", "chosen": "Tea is warm.", "rejected": "Milk is cold."} for i in range(16)
]


@pytest.fixture
def aligned(campaign: Callable[..., Any], jsonl: Callable[..., Path], tmp_path: Path) -> Callable[..., Any]:
    """Run the align stage after imported labels; its SFT parent is the base model, as if it had been trained."""

    def run(split: dict[str, float] | None = None, labels: list[Any] = PAIRS, **keys: Any) -> tuple[Any, Path]:
        jsonl(tmp_path / "labels.jsonl", labels)
        made = campaign(tmp_path, label={"source": "import", "path": "labels.jsonl"}, align=keys, split=split or {})
        if find_stage(made.run_dir, "sft") is None:
            stage = runs.begin(made.stages["sft"])
            loading.save(loading.load_base(made.config.model), stage.dir / "model")
            stage.finish()
            ui.label.run.run(made.stages["label"])
        return made, load_object(made.stages["align"].run)(made.stages["align"])

    return run


@pytest.fixture
def metrics() -> Callable[[Path], list[dict[str, float]]]:
    """The steps of a training."""

    def read(directory: Path) -> list[dict[str, float]]:
        rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
        return [row for row in rows if "loss" in row]

    return read

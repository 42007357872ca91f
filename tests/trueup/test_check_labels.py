"""`trueup check` on what is learnt from labels: what nobody is asked for is a problem before anybody labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trueup.checking.labels import check_signals

PEOPLE: dict[str, Any] = {"source": "human", "repeat_share": 0.0}


@pytest.mark.parametrize(
    ("label", "keys", "problem"),
    [
        (PEOPLE, {"criteria_weights": {"helpfull": 1.0}}, "criteria_weights: nobody is asked for helpfull"),
        ({**PEOPLE, "criteria": ["helpful"]}, {"criteria_weights": {"helpful": 1.0, "overall": 1.0}}, None),
        ({"source": "import", "path": "labels.jsonl"}, {"criteria_weights": {"helpful": 1.0}}, None),
        (PEOPLE, {"label_smoothing": "measured"}, "label_smoothing: measured: each pair is labelled once"),
        ({**PEOPLE, "labels_per_pair": 2}, {"label_smoothing": "measured"}, None),
        (PEOPLE, {"annotator_weights": "reliability"}, "annotator_weights: reliability: each pair is labelled once"),
        ({"source": "human"}, {"annotator_weights": "reliability"}, None),
        ({"source": "import", "path": "labels.jsonl"}, {"annotator_weights": "reliability"}, None),
    ],
)
@pytest.mark.parametrize("stage", ["reward", "align"])
def test_a_key_that_no_label_can_obey_is_a_problem(
    campaign: Callable[..., Any],
    jsonl: Callable[..., Path],
    tmp_path: Path,
    stage: str,
    label: dict[str, Any],
    keys: dict[str, Any],
    problem: str | None,
) -> None:
    jsonl(tmp_path / "labels.jsonl", [{"prompt": "Tea?", "chosen": "Yes.", "rejected": "No."}])
    stages = campaign(tmp_path, label=label, **{stage: keys}).stages
    problems: list[str] = []
    check_signals(stages[stage], stages["label"], problems)
    assert [line.partition(".")[0] for line in problems] == ([stage] if problem else [])
    assert problem is None or problem in problems[0]

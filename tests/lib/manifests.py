"""A manifest and a report card as stages write them, for runs that tests lay out by hand."""

from __future__ import annotations

from typing import Any


def manifest_of(stage: str, **facts: Any) -> dict[str, Any]:
    """Every key that readers rely on; `facts` replace or add some."""
    return {
        "stage": stage,
        "status": "complete",
        "started_utc": "2026-11-24T04:03:46+00:00",
        "duration_s": 125.0,
        "device": "cpu",
        "dtype": "float32",
        "seed": 0,
        "git_commit": None,
        "versions": {},
        "config_sha256": "00" * 32,
        "identity": {},
        "parents": [],
        "inputs": [],
        "outputs": [],
        "contents": {},
        "fingerprint": {},
        "verdict": {"status": "pass", "findings": []},
        **facts,
    }


def card_of(**keys: Any) -> dict[str, Any]:
    """The report card of a reward model without held-out pairs; `keys` replace or add some."""
    pairs = {"train": 40, "heldout": 0}
    return {"pairs": pairs, "accuracy": None, "length_baseline": None, "baselines": {}, "findings": [], **keys}

"""Manifests, report cards and comparisons as stages write them, for runs that tests lay out by hand."""

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


RATE = {"value": 0.71, "ci_low": 0.58, "ci_high": 0.81, "n": 60, "wins": 40, "ties": 5, "losses": 15, "prompts": 5}


def judge_of(**keys: Any) -> dict[str, Any]:
    """What one judge says in a comparison; `keys` replace or add some."""
    controlled = {"value": 0.66, "ci_low": 0.5, "ci_high": 0.8, "n": 5, "slope": 0.1, "note": None}
    return {
        "description": "a judge",
        "made_the_labels": True,
        "independent": False,
        "win_rate": RATE,
        "length_controlled_win_rate": controlled,
        "minimum_detectable_effect": None,
        "by_category": {},
        **keys,
    }


def verdict_of(**keys: Any) -> dict[str, Any]:
    """What a comparison concludes; `keys` replace some."""
    told = {"code": "learnt_preference", "message": "The aligned policy is preferred, by the rubric."}
    said = {"outcome": "improved", "status": "warn", **told, "prices": [], "judge": "rubric", "passed_over": {}}
    return {**said, **keys}


def comparison_of(**keys: Any) -> dict[str, Any]:
    """What the application reads of a comparison's report; `keys` replace some."""
    stages = {"sft": "sft", "aligned": "align"}
    return {
        "policies": {name: {"stage": of, "manifest_sha256": f"{name}-5e1f00d5"} for name, of in stages.items()},
        "confidence": 0.95,
        "decoding": {"max_new_tokens": 48, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "seed": 0},
        "judges": {"rubric": judge_of()},
        "noise_floor": {},
        "verdict": verdict_of(),
        **keys,
    }

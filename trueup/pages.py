"""What the pages about a result have in common: what a report may run, and what things are called.

A report runs the one script that ships with this package, and nothing else. The page holds the script and allows it by
its hash; the web application repeats that in a header. Both take it from here, so that neither can allow what the other
wrote, and a script in a model's answer has no hash to run under.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

# ---- What a report may run --------------------------------------------------------------------------------------


@cache
def report_script() -> str:
    return (Path(__file__).parent / "report.js").read_text(encoding="utf-8")


@cache
def report_policy() -> str:
    """Content-Security-Policy of a report: its own styles, its own script, and not one request."""
    digest = base64.b64encode(hashlib.sha256(report_script().encode()).digest()).decode()
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:"


# ---- Words ------------------------------------------------------------------------------------------------------

OUTCOMES = {
    "improved": ("Improved", "pass"),
    "improved_at_a_price": ("Improved, at a price", "warn"),
    "no_detectable_change": ("No detectable change", "warn"),
    "worse": ("Worse", "fail"),
    "no_verdict": ("No verdict", "warn"),
}


def outcome(verdict: Mapping[str, Any]) -> tuple[str, str]:
    """What a comparison's verdict is called, and its tone (pass, warn, fail); one of before has no outcome yet."""
    tone = str(verdict.get("status", "unknown"))
    learnt = "Learnt, with warnings" if verdict.get("code") == "learnt_preference" else "With warnings"
    before = {"pass": "Pass", "warn": learnt, "fail": "Fail"}.get(tone, "Unknown")
    return OUTCOMES.get(str(verdict.get("outcome")), (before, tone))


def sentence(verdict: Mapping[str, Any]) -> str:
    """What a verdict says, without the prices at its end: a page lists those."""
    prices = "; ".join(str(price) for price in verdict.get("prices") or [])
    return str(verdict.get("message", "")).removesuffix(f" The price: {prices}.")


def duration(seconds: float) -> str:
    """`48 s`, `8 min 3 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def independence(name: str, judge: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether a judge of a comparison knew nothing of the training, and what that means for what it says."""
    # Reports from before this was written down knew only whether a judge made the labels.
    if judge.get("independent", not judge.get("made_the_labels", name == "reward_model")):
        return True, "Nothing that it knows was in the training of this policy."
    if name == "reward_model":
        return False, "The reward model learnt from the same labels: no independent evidence."
    if judge.get("made_the_labels"):
        return False, (
            "This judge made the labels that the policy learnt from: it says whether that preference was learnt, and "
            "is no independent evidence that anybody else shares it."
        )
    return False, "It stands behind the training of this policy: no independent evidence."


def noise_floor(report: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]] | None:
    """(judge, figures) of the SFT policy against itself, by the first judge that can tell: one that looks at pairs is
    asked about the two policies alone."""
    floors = report.get("noise_floor") or {}
    return next(((name, floors[name]) for name in report.get("judges") or {} if name in floors), None)


def leans(share: float | None) -> str:
    """Whom a judge prefers on a prompt, with the share of the comparisons there that this one wins.

    share  of the aligned policy; None: not judged
    """
    if share is None:
        return "not judged"
    if share == 0.5:
        return "neither 50\N{NO-BREAK SPACE}%"
    who, won = ("aligned", share) if share > 0.5 else ("SFT", 1 - share)
    return f"{who} {100 * won:.0f}\N{NO-BREAK SPACE}%"

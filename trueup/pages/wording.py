"""What the pages about a result have in common: what a report may run, and what things are called.

A report runs the one script that ships with this package, and nothing else. The page holds the script and allows it by
its hash; the web application repeats that in a header. Both take it from here, so that neither can allow what the other
wrote, and a script in a model's answer has no hash to run under.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path

from trueup.artifacts.reports import ComparisonFigures, ComparisonVerdict, JudgeFigures, Rate

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
"""What each outcome of a comparison is called, and its tone (pass, warn, fail)."""


def sentence(verdict: ComparisonVerdict) -> str:
    """What a verdict says, without the prices at its end: a page lists those."""
    return verdict.message.removesuffix(f" The price: {'; '.join(verdict.prices)}.")


def minus(text: str) -> str:
    """The text with a minus sign in place of each hyphen."""
    return text.replace("-", "\N{MINUS SIGN}")


def short(value: float) -> str:
    """Three digits of a number, as they stand in a sentence."""
    return minus(f"{value:.3g}")


def duration(seconds: float) -> str:
    """`48 s`, `8 min 3 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def independence(name: str, judge: JudgeFigures) -> tuple[bool, str]:
    """Whether a judge of a comparison knew nothing of the training, and what that means for what it says."""
    if judge.independent:
        return True, "Nothing that it knows was in the training of this policy."
    if name == "reward_model":
        return False, "The reward model learnt from the same labels: no independent evidence."
    if judge.made_the_labels:
        return False, (
            "This judge made the labels that the policy learnt from: it says whether that preference was learnt, and "
            "is no independent evidence that anybody else shares it."
        )
    return False, "It stands behind the training of this policy: no independent evidence."


def noise_floor(report: ComparisonFigures) -> tuple[str, Rate] | None:
    """(judge, figures) of the SFT policy against itself, by the first judge that can tell: one that looks at pairs is
    asked about the two policies alone."""
    floors = report.noise_floor
    return next(((name, floors[name]) for name in report.judges if name in floors), None)


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

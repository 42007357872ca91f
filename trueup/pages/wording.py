"""Common parts of the pages: the one script that a report may run, names of outcomes, and number formats.

A report runs the script that ships with this package, and no other. The page contains the script and allows it by its
hash; the web application repeats that in a header. Both take it from here, so both allow the same script, and a script
in a model's answer cannot run.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from trueup.artifacts.reports import ComparisonFigures, ComparisonVerdict, Estimate, JudgeFigures, Rate

# ---- What a report may run --------------------------------------------------------------------------------------


@cache
def report_script() -> str:
    return (Path(__file__).parent / "report.js").read_text(encoding="utf-8")


@cache
def report_policy() -> str:
    """Content-Security-Policy of a report: its own styles, its own script, and no request."""
    digest = base64.b64encode(hashlib.sha256(report_script().encode()).digest()).decode()
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:"


@cache
def plot_style() -> str:
    """The style sheet of the pictures. A page sets their colours."""
    return (Path(__file__).parent / "plots.css").read_text(encoding="utf-8")


# ---- Words ------------------------------------------------------------------------------------------------------

OUTCOMES = {
    "improved": ("Improved", "pass"),
    "improved_at_a_price": ("Improved, at a price", "warn"),
    "no_detectable_change": ("No detectable change", "warn"),
    "worse": ("Worse", "fail"),
    "no_verdict": ("No verdict", "warn"),
}
"""The name of each outcome of a comparison, and its tone (pass, warn, fail)."""


def sentence(verdict: ComparisonVerdict) -> str:
    """A verdict's message without the prices at its end, which a page lists."""
    return verdict.message.removesuffix(f" The price: {'; '.join(verdict.prices)}.")


def independence(name: str, judge: JudgeFigures) -> tuple[bool, str]:
    """Whether a judge is independent of the training, with a sentence on what that means."""
    if judge.independent:
        return True, "Nothing that it knows was in the training of this policy."
    if name == "reward_model":
        return False, "The reward model learnt from the same labels: no independent evidence."
    if judge.made_the_labels:
        return False, (
            "This judge made the labels that the policy learnt from: it shows whether the policy learnt that "
            "preference, and is no independent evidence that anybody else shares it."
        )
    return False, "This judge had a part in the training of this policy: no independent evidence."


def noise_floor(report: ComparisonFigures) -> tuple[str, Rate] | None:
    """(judge, figures) of the SFT policy against itself, by the first judge that has them: a judge of pairs sees the
    two policies only."""
    floors = report.noise_floor
    return next(((name, floors[name]) for name in report.judges if name in floors), None)


def title(name: str) -> str:
    """A name of the data as people read it."""
    return name.replace("_", " ")


# ---- Numbers ----------------------------------------------------------------------------------------------------

UNKNOWN = "not known"


def minus(text: str) -> str:
    """The text with a minus sign in place of each hyphen."""
    return text.replace("-", "\N{MINUS SIGN}")


def tight(text: str) -> str:
    """The text with each percent sign kept on the line of its number."""
    return text.replace(" %", "\N{NO-BREAK SPACE}%")


def short(value: float) -> str:
    """`0.0123`: three digits, for a sentence."""
    return minus(f"{value:.3g}")


def weight(value: float) -> str:
    """`+0.5`: three digits with their sign."""
    return minus(f"{value:+.3g}")


def decimals(value: float, digits: int) -> str:
    """`2.03`, with no minus before what rounds to 0."""
    return minus(f"{value:z.{digits}f}")


def axis(value: float, among: Sequence[float]) -> str:
    """A number beside an axis, with as many decimals as the axis needs, up to six."""
    digits = next((d for d in range(6) if all(math.isclose(round(v, d), v, abs_tol=1e-9) for v in among)), 6)
    return minus(f"{value:.{digits}f}")


def percent(value: float | None, digits: int = 1) -> str:
    """`68.0 %`, on one line."""
    return UNKNOWN if value is None else f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%"


def measure(value: float | None, form: str, unknown: str = UNKNOWN) -> str:
    """A measure in a table. `form` is `share` or the format of a number, such as `.2f`."""
    if value is None:
        return unknown
    return percent(value) if form == "share" else minus(f"{value:{form}}")


def interval(figures: Estimate) -> str:
    """`68.0 % [62.3, 73.5]`."""
    if figures.value is None:
        return UNKNOWN
    if figures.ci_low is None or figures.ci_high is None:
        return f"{percent(figures.value)} (no interval)"
    return f"{percent(figures.value)} [{100 * figures.ci_low:.1f}, {100 * figures.ci_high:.1f}]"


def quantity(figures: Estimate | float | None, digits: int = 2) -> str:
    """`2.03 [1.60, 2.50]`: a figure that is not a share; a bare number has no interval."""
    if figures is None:
        return UNKNOWN
    if not isinstance(figures, Estimate):
        return decimals(figures, digits)
    if figures.value is None:
        return UNKNOWN
    low, high = figures.ci_low, figures.ci_high
    between = "" if low is None or high is None else f" [{decimals(low, digits)}, {decimals(high, digits)}]"
    return f"{decimals(figures.value, digits)}{between}"


def in_brackets(value: float, low: float | None, high: float | None, is_share: bool, no_interval: str) -> str:
    """`68 % (62 to 74)` for a share, `0.41 (0.30 to 0.52)` for a coefficient."""
    scale, digits, unit = (100, 0, " %") if is_share else (1, 2, "")
    if low is None or high is None:
        return f"{minus(f'{scale * value:.{digits}f}')}{unit} ({no_interval})"
    number, least, most = (minus(f"{scale * each:.{digits}f}") for each in (value, low, high))
    return f"{number}{unit} ({least} to {most})"


def p_value(p: float) -> str:
    """`0.034`, `< 0.001`."""
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def counted(rate: Rate) -> str:
    """`31 won, 4 tied, 13 lost`."""
    return f"{rate.wins} won, {rate.ties} tied, {rate.losses} lost"


def how_many(count: int, noun: str) -> str:
    """`1 row`, `1,204 rows`"""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def duration(seconds: float) -> str:
    """`48 s`, `8 min 3 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def about(hours: float) -> str:
    """`25 min`, `3.4 h`, `5 days`: an estimated time."""
    if hours < 1.5:
        return f"{max(1, round(60 * hours))} min"
    return f"{hours:.1f} h" if hours < 10 else f"{hours:,.0f} h" if hours < 72 else f"{hours / 24:,.0f} days"


def leans(share: float | None) -> str:
    """The policy that a judge prefers on a prompt, with its share of the comparisons there.

    share  of the aligned policy; None: not judged
    """
    if share is None:
        return "not judged"
    if share == 0.5:
        return f"neither {percent(share, 0)}"
    who, share_won = ("aligned", share) if share > 0.5 else ("SFT", 1 - share)
    return f"{who} {percent(share_won, 0)}"

"""What the pages of this package are made with: the templates, and how a figure is written."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from trueup.artifacts.reports import Estimate, Rate
from trueup.data.visible import seen
from trueup.pages import plots, wording


@cache
def environment() -> Environment:
    """What the pages of this package are made with."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (percent, interval, quantity, tight, bar)
    made.filters.update({function.__name__: function for function in filters})
    made.filters.update(title=title, duration=wording.duration, short=lambda sha: sha[:12], seen=seen)
    made.globals.update(script=Markup(wording.report_script()), policy=wording.report_policy(), counted=counted)
    return made


POLICIES = {"base": "Base", "sft": "SFT", "aligned": "Aligned", "best_of_n": "Best of n"}


# ---- Words ------------------------------------------------------------------------------------------------------


def percent(value: float | None, digits: int = 1) -> str:
    return "not known" if value is None else f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%"


def tight(text: str) -> str:
    """Keeps a percent sign on the line of its number."""
    return text.replace(" %", "\N{NO-BREAK SPACE}%")


def interval(figures: Estimate) -> str:
    """`68.0 % [62.3, 73.5]`."""
    if figures.value is None:
        return "not known"
    if figures.ci_low is None or figures.ci_high is None:
        return f"{percent(figures.value)} (no interval)"
    return f"{percent(figures.value)} [{100 * figures.ci_low:.1f}, {100 * figures.ci_high:.1f}]"


def quantity(figures: Estimate | float | None, digits: int = 2) -> str:
    """`2.03 [1.60, 2.50]` of something that is no share; a bare number has no interval."""
    if figures is None:
        return "not known"
    if not isinstance(figures, Estimate):
        return _number(figures, digits)
    if figures.value is None:
        return "not known"
    low, high = figures.ci_low, figures.ci_high
    between = "" if low is None or high is None else f" [{_number(low, digits)}, {_number(high, digits)}]"
    return f"{_number(figures.value, digits)}{between}"


def bar(figures: Estimate) -> Markup:
    if figures.value is None:
        return Markup("")
    return plots.interval_bar(figures.value, figures.ci_low, figures.ci_high)


def title(name: str) -> str:
    """A name of the data as people read it."""
    return name.replace("_", " ")


def policy_title(name: str) -> str:
    return POLICIES.get(name, title(name))


def _number(value: float, digits: int) -> str:
    return with_minus_sign(f"{value:z.{digits}f}")  # z: no minus before what rounds to 0


def with_minus_sign(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")


def value_of(figures: Estimate | float | None) -> float | None:
    """The number of a figure, with or without an interval."""
    return figures.value if isinstance(figures, Estimate) else figures


def counted(rate: Rate) -> str:
    """`31 won, 4 tied, 13 lost`."""
    return f"{rate.wins} won, {rate.ties} tied, {rate.losses} lost"

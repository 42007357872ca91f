"""The frame of a report: a page that is one file, in whose templates every text is escaped.

A stage's package brings the template of its report; `report_frame.html.jinja` and `report_parts.html.jinja` are here,
since reports look alike and packages never import each other."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from trueup.artifacts.reports import Estimate
from trueup.data.visible import seen
from trueup.pages import plots, wording


@cache
def environment(folder: Path) -> Environment:
    """The templates of a package's folder and those of the frame, with the filters that they use."""
    templates = Environment(
        loader=FileSystemLoader([folder, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    formats = (
        wording.percent,
        wording.interval,
        wording.quantity,
        wording.tight,
        wording.duration,
        wording.title,
        wording.p_value,
    )
    templates.filters.update({function.__name__: function for function in (*formats, bar, seen)})
    templates.filters.update(short=lambda sha256: sha256[:12])
    templates.globals.update(
        script=Markup(wording.report_script()),
        plot_style=Markup(wording.plot_style()),
        policy=wording.report_policy(),
        counted=wording.counted,
    )
    return templates


def bar(figures: Estimate) -> Markup:
    """The figure as a bar with its interval; empty where nothing is known."""
    if figures.value is None:
        return Markup("")
    return plots.interval_bar(figures.value, figures.ci_low, figures.ci_high)

"""The campaign's report: one HTML page that needs nothing else, made from what the stages left on disk.

Every text on it is escaped, since a model's answer may be anything. The page's own policy lets it run the one script
that ships with the package (`trueup.pages`), which filters the list of prompts, and forbids every request; without the
script the list is a list.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from rlhf import report_views as views
from rlhf.compare_schema import CompareReport
from trueup import curves, pages, runs
from trueup.errors import RunError
from trueup.manifest import Manifest
from trueup.records import read_jsonl
from trueup.reports import RewardCard
from trueup.runs import StageRun
from trueup.visible import seen

TEMPLATE = "report.html.jinja"
MOST_PROMPTS = 500
"""The page lists so many prompts; samples.jsonl has all."""


def write_report(run_dir: Path, compare: StageRun | None = None) -> None:
    """Write compare/report.html.

    compare  the compare stage at work, which has no manifest yet; without it the stage must be finished
    """
    directory = runs.stage_dir(run_dir, "compare")
    page = render(gather(run_dir, compare))
    partial = directory / "report.html.partial"
    partial.write_text(page, encoding="utf-8")
    partial.replace(directory / "report.html")


def render(context: dict[str, Any]) -> str:
    return environment().get_template(TEMPLATE).render(context)


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
    filters = (views.percent, views.interval, views.quantity, views.tight, views.bar)
    made.filters.update({function.__name__: function for function in filters})
    made.filters.update(title=views.title, duration=pages.duration, short=lambda sha: sha[:12], seen=seen)
    made.globals.update(script=Markup(pages.report_script()), policy=pages.report_policy(), counted=views.counted)
    return made


# ---- What is on disk --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StageView:
    """A stage as the report shows it."""

    stage: str
    folder: str
    manifest: Manifest
    sha256: str | None
    """None: the stage that is writing this page."""


def gather(run_dir: Path, compare: StageRun | None = None) -> dict[str, Any]:
    """Everything that the template shows."""
    directory = runs.stage_dir(run_dir, "compare")
    report = runs.read_report(run_dir, "compare", CompareReport)
    if report is None:
        raise RunError(f"{directory / runs.REPORT}: missing; run `trueup compare CONFIG` again")
    rows = [row for _, row in read_jsonl(directory / "samples.jsonl")]
    stages = read_stages(run_dir, compare)
    first = report.verdict.judge or next(iter(report.judges))
    seed = report.decoding.seed
    reward = runs.find_stage(run_dir, "reward")
    shown = {row["prompt_id"]: views.prompt_view(row) for row in rows[:MOST_PROMPTS]}
    return {
        "name": run_dir.resolve().name,
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "report": report,
        "verdict": views.verdict_view(report),
        "judges": views.judge_views(report),
        "by_category": views.by_category(report),
        "matrices": views.all_pairs(report),
        "strengths": views.strengths(report),
        "checks": views.check_views(report),
        "checkpoints": views.checkpoint_view(report),
        "categories": sorted({row.get("category") or "" for row in rows[:MOST_PROMPTS]}),
        "first_judge": first,
        "sources": [(source, count, views.SOURCES.get(source, "")) for source, count in report.sources.items()],
        "labels": sum(report.sources.values()),
        "measures": views.measures(report),
        "accuracies": views.accuracies(reward.report(RewardCard) if reward else None),
        "lengths": views.length_histogram(rows),
        "curves": [(view.stage, found) for view in stages if (found := curves.stage_curves(run_dir, view.stage))],
        "examples": [
            (kind, [shown.get(row["prompt_id"]) or views.prompt_view(row) for row in chosen])
            for kind, chosen in views.pick_examples(rows, first, seed)
        ],
        "prompts": list(shown.values()),
        "total_prompts": len(rows),
        "stages": stages,
        "findings": [(view.stage, finding) for view in stages for finding in view.manifest.verdict.findings],
        "total_s": sum(view.manifest.duration_s for view in stages),
        "seed": seed,
    }


def read_stages(run_dir: Path, compare: StageRun | None) -> list[StageView]:
    """Every finished stage in order, and the compare stage at work."""
    found_stages = []
    for stage, folder in runs.DIRECTORIES.items():
        if compare is not None and stage == compare.config.stage:
            found_stages.append(StageView(stage, folder, compare.manifest([]), None))
        elif found := runs.find_stage(run_dir, stage):
            found_stages.append(StageView(stage, folder, found.manifest, found.sha256))
    return found_stages

"""The campaign's report: one HTML page that needs nothing else, made from what the stages left on disk.

Every text on it is escaped, since a model's answer may be anything. The page's own policy lets it run the one script
that ships with the package (`trueup.pages.wording`), which filters the list of prompts, and forbids every request;
without the script the list is a list."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rlhf.compare import prompt_views, report_views
from rlhf.compare.schema import CompareReport
from rlhf.html import environment
from trueup import runs
from trueup.artifacts.manifest import Manifest
from trueup.artifacts.reports import RewardCard
from trueup.data.records import read_jsonl
from trueup.errors import RunError
from trueup.pages import curves
from trueup.runs import StageRun

TEMPLATE = "compare/report.html.jinja"
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


def render(context: Mapping[str, object]) -> str:
    """The page as text."""
    return environment().get_template(TEMPLATE).render(context)


# ---- What is on disk --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StageView:
    """A stage as the report shows it."""

    stage: str
    folder: str
    manifest: Manifest
    sha256: str | None
    """None: the stage that is writing this page."""


def gather(run_dir: Path, compare: StageRun | None = None) -> dict[str, object]:
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
    views = {row["prompt_id"]: prompt_views.prompt_view(row) for row in rows[:MOST_PROMPTS]}
    return {
        "name": run_dir.resolve().name,
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "report": report,
        "verdict": report_views.verdict_view(report),
        "judges": report_views.judge_views(report),
        "by_category": report_views.by_category(report),
        "matrices": report_views.all_pairs(report),
        "strengths": report_views.strengths(report),
        "checks": report_views.check_views(report),
        "checkpoints": report_views.checkpoint_view(report),
        "categories": sorted({row.get("category") or "" for row in rows[:MOST_PROMPTS]}),
        "first_judge": first,
        "sources": [(source, count, report_views.SOURCES.get(source, "")) for source, count in report.sources.items()],
        "labels": sum(report.sources.values()),
        "measures": report_views.measures(report),
        "accuracies": report_views.accuracies(reward.report(RewardCard) if reward else None),
        "lengths": prompt_views.length_histogram(rows),
        "curves": [(view.stage, charts) for view in stages if (charts := curves.stage_curves(run_dir, view.stage))],
        "examples": [
            (kind, [views.get(row["prompt_id"]) or prompt_views.prompt_view(row) for row in chosen])
            for kind, chosen in prompt_views.pick_examples(rows, first, seed)
        ],
        "prompts": list(views.values()),
        "total_prompts": len(rows),
        "stages": stages,
        "findings": [(view.stage, finding) for view in stages for finding in view.manifest.verdict.findings],
        "total_s": sum(view.manifest.duration_s for view in stages),
        "seed": seed,
    }


def read_stages(run_dir: Path, compare: StageRun | None) -> list[StageView]:
    """Every finished stage in order, and the compare stage at work."""
    views = []
    for stage, folder in runs.DIRECTORIES.items():
        if compare is not None and stage == compare.config.stage:
            views.append(StageView(stage, folder, compare.manifest([]), None))
        elif finished := runs.find_stage(run_dir, stage):
            views.append(StageView(stage, folder, finished.manifest, finished.sha256))
    return views

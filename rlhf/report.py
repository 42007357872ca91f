"""The campaign's report: one HTML page that needs nothing else, made from what the stages left on disk.

Every text on it is escaped, since a model's answer may be anything, and the page's own policy forbids scripts and all
requests besides.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from trueup import plots, runs
from trueup.records import read_jsonl
from trueup.runs import StageRun

TEMPLATE = "report.html.jinja"
EXAMPLES = 4
"""Prompts shown of each kind: won, lost, undecided."""
MOST_PROMPTS = 500
"""The page lists so many prompts; samples.jsonl has all."""

SOURCES = {
    "human": "people, in the browser",
    "simulated": "a written rubric; no person said these",
    "import": "a file from elsewhere",
    "judge": "a language model asked to judge",
    "reward_model": "an existing reward model",
}
MEASURES = (
    ("length_tokens", "Length, tokens", "mean of all answers, with the end-of-turn token", "{:.1f}"),
    ("eos_rate", "Ends by itself", "share of answers; the others were cut at the limit", "share"),
    ("distinct_2", "Distinct word pairs", "of all word pairs; lower: answers grow alike", "share"),
    ("repetition", "Repeats itself", "share of answers that say three words in a row twice", "share"),
    ("heldout_loss", "Loss on held-out demonstrations", "nats per token; measured by the SFT stage only", "{:.3f}"),
)
CURVES = {
    "loss": (("loss", "loss", "s-reference"),),
    "implicit rewards": (("chosen", "rewards/chosen", "s-aligned"), ("rejected", "rewards/rejected", "s-rejected")),
    "reward margin": (("margin", "rewards/margins", "s-aligned"),),
    "share of pairs ordered rightly": (("accuracy", "rewards/accuracies", "s-aligned"),),
    "log-probability, nats": (("chosen", "logps/chosen", "s-aligned"), ("rejected", "logps/rejected", "s-rejected")),
}
"""What is drawn of a stage's metrics.jsonl: (name, key, colour) of each line. A chart without its keys is left out."""


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
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        percent=percent, interval=interval, duration=duration, tight=tight, bar=bar, short=lambda sha: sha[:12]
    )
    return environment.get_template(TEMPLATE).render(context)


# ---- What is on disk --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StageView:
    """A stage as the report shows it."""

    stage: str
    folder: str
    manifest: dict[str, Any]
    sha256: str | None
    """None: the stage that is writing this page."""


def gather(run_dir: Path, compare: StageRun | None = None) -> dict[str, Any]:
    """Everything that the template shows."""
    directory = runs.stage_dir(run_dir, "compare")
    report = read_json(directory / "report.json")
    rows = [row for _, row in read_jsonl(directory / "samples.jsonl")]
    stages = read_stages(run_dir, compare)
    first = next(iter(report["judges"]))
    seed = int(report["decoding"]["seed"])
    reward = read_json(runs.stage_dir(run_dir, "reward") / "report.json") if runs.find_stage(run_dir, "reward") else {}
    return {
        "name": run_dir.resolve().name,
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "report": report,
        "verdict": report["verdict"],
        "first_judge": first,
        "sources": [(source, count, SOURCES.get(source, "")) for source, count in report["sources"].items()],
        "labels": sum(report["sources"].values()),
        "measures": measures(report),
        "accuracies": accuracies(reward),
        "lengths": length_histogram(rows),
        "curves": [(view.stage, charts) for view in stages if (charts := training_curves(run_dir, view.stage))],
        "examples": pick_examples(rows, first, seed),
        "rows": rows[:MOST_PROMPTS],
        "total_rows": len(rows),
        "stages": stages,
        "findings": [(view.stage, finding) for view in stages for finding in view.manifest["verdict"]["findings"]],
        "total_s": sum(view.manifest["duration_s"] for view in stages),
        "seed": seed,
    }


def read_stages(run_dir: Path, compare: StageRun | None) -> list[StageView]:
    """Every finished stage in order, and the compare stage at work."""
    views = []
    for stage, folder in runs.DIRECTORIES.items():
        if compare is not None and stage == compare.config.stage:
            manifest = {
                "duration_s": time.time() - compare.started,
                "parents": [{"stage": parent.stage, "manifest_sha256": parent.sha256} for parent in compare.parents],
                "inputs": compare.inputs,
                "verdict": compare.verdict,
                **compare.facts,
            }
            views.append(StageView(stage, folder, manifest, None))
        elif found := runs.find_stage(run_dir, stage):
            views.append(StageView(stage, folder, found.manifest, found.sha256))
    return views


def read_json(path: Path) -> dict[str, Any]:
    """A report of another stage; empty where there is none, since a page about what is there is of use all the same."""
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return loaded if isinstance(loaded, dict) else {}


# ---- Tables -----------------------------------------------------------------------------------------------------


def measures(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the table of both policies' answers; those that nobody measured are left out."""
    table = []
    for key, title, meaning, form in MEASURES:
        both = report.get(key) or {}
        values = [both.get("reference"), both.get("aligned")]
        if any(value is not None for value in values):
            shown = [
                "not measured" if value is None else percent(value) if form == "share" else form.format(value)
                for value in values
            ]
            table.append({"title": title, "meaning": meaning, "reference": shown[0], "aligned": shown[1]})
    return table


def accuracies(reward: dict[str, Any]) -> list[dict[str, Any]]:
    """The reward model's held-out accuracy, then the rules that read nothing."""
    if not reward.get("accuracy"):
        return []
    baselines = reward.get("baselines") or {"length alone": reward.get("length_baseline")}
    rows = [{"title": "reward model", "figures": reward["accuracy"], "is_model": True}]
    return rows + [{"title": name, "figures": value, "is_model": False} for name, value in baselines.items() if value]


# ---- Plots ------------------------------------------------------------------------------------------------------


def length_histogram(rows: Sequence[dict[str, Any]]) -> Markup:
    series = [
        plots.Series(name, f"s-{side}", [answer["num_tokens"] for row in rows for answer in row[side]])
        for name, side in (("SFT", "reference"), ("aligned", "aligned"))
    ]
    return plots.histogram(series, "tokens")


def training_curves(run_dir: Path, stage: str) -> list[dict[str, Any]]:
    """Charts of a stage's training metrics; none for a stage that does not train."""
    path = runs.stage_dir(run_dir, stage) / runs.METRICS
    if not path.exists():
        return []
    rows = [row for _, row in read_jsonl(path) if "step" in row]
    charts = []
    for title, lines in CURVES.items():
        series = []
        for name, key, style in lines:
            points = [(row["step"], row[key]) for row in rows if isinstance(row.get(key), int | float)]
            if points:
                series.append(plots.Series(name, style, [y for _, y in points], [x for x, _ in points]))
        if series:
            charts.append({"title": title, "series": series, "svg": plots.line_chart(series, "step", title)})
    return charts


# ---- Examples ---------------------------------------------------------------------------------------------------


def pick_examples(rows: Sequence[dict[str, Any]], judge: str, seed: int) -> list[tuple[str, list[dict[str, Any]]]]:
    """A few prompts of each kind, drawn by the seed and not by eye: (kind, rows). Others fill up where ties are few."""
    draw = random.Random(seed)

    def some(of: Sequence[dict[str, Any]], count: int = EXAMPLES) -> list[dict[str, Any]]:
        return draw.sample(list(of), min(count, len(of)))

    share = {row["prompt_id"]: row["win_share"][judge] for row in rows}
    won = some([row for row in rows if share[row["prompt_id"]] > 0.5])
    lost = some([row for row in rows if share[row["prompt_id"]] < 0.5])
    tied = some([row for row in rows if share[row["prompt_id"]] == 0.5])
    shown = {row["prompt_id"] for row in (*won, *lost, *tied)}
    filled = some([row for row in rows if row["prompt_id"] not in shown], EXAMPLES - len(tied))
    kinds = [("The aligned policy wins more of the comparisons", won), ("The SFT policy wins more of them", lost)]
    kinds += [("Neither wins more", tied), ("Drawn from all others", filled)]
    return [(kind, chosen) for kind, chosen in kinds if chosen]


# ---- Words ------------------------------------------------------------------------------------------------------


def percent(value: float | None, digits: int = 1) -> str:
    return "not known" if value is None else f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%"


def tight(text: str) -> str:
    """Keeps a percent sign on the line of its number."""
    return text.replace(" %", "\N{NO-BREAK SPACE}%")


def interval(figures: dict[str, Any]) -> str:
    """`68.0 % [62.3, 73.5]`."""
    if figures["value"] is None:
        return "not known"
    if figures["ci_low"] is None or figures["ci_high"] is None:
        return f"{percent(figures['value'])} (one prompt: no interval)"
    return f"{percent(figures['value'])} [{100 * figures['ci_low']:.1f}, {100 * figures['ci_high']:.1f}]"


def bar(figures: dict[str, Any]) -> Markup:
    if figures["value"] is None:
        return Markup("")
    return plots.interval_bar(figures["value"], figures["ci_low"], figures["ci_high"])


def duration(seconds: float) -> str:
    """`48 s`, `8 min 3 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"

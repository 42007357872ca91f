"""The page of a reward model: reward/report.html, one file that needs nothing else.

Every text of people and models is escaped by the template. The page says whether the scores may be believed, and what
to read before an algorithm is paid by them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from markupsafe import Markup

from reward.report import Learnt, Mistake, ReportCard, RewardReport, StartChoice
from trueup.artifacts.reports import Estimate, Share
from trueup.files import write_atomically
from trueup.pages import curves, plots
from trueup.pages.frame import environment
from trueup.pages.wording import decimals, interval, percent, quantity
from trueup.runs import StageRun
from trueup.stages import title_of

TEMPLATE = "report.html.jinja"

OUTCOMES = {
    "pass": "Better than chance and than the baselines",
    "warn": "To be used with care",
    "fail": "Not to be believed",
}
SLICES = {
    "by_length": "Chosen answer, against the other",
    "by_strength": "How much better",
    "by_category": "Category of the prompt",
    "by_annotator": "Annotator",
    "by_source": "Source of the label",
    "by_round": "Round that asked",
}
"""What each slicing of the card is called."""
GRADES = {"1": "slightly better", "2": "better", "3": "much better", "none": "not asked"}


@dataclass(frozen=True)
class ForestRow:
    """A share with its interval in the plot of accuracies."""

    title: str
    figures: Estimate
    note: str = ""
    is_model: bool = False


def write_report(stage: StageRun, report: RewardReport, mistakes: Sequence[Mistake]) -> None:
    """Write report.html of the reward stage at work, from its report and what it left beside it."""
    page = environment(Path(__file__).parent).get_template(TEMPLATE).render(gather(stage, report, mistakes))
    write_atomically(stage.dir / "report.html", page)


def gather(stage: StageRun, report: RewardReport, mistakes: Sequence[Mistake]) -> dict[str, object]:
    """Everything that the template shows."""
    run_dir, verdict = stage.config.run_dir, stage.verdict
    return {
        "name": title_of(run_dir),
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "report": report,
        "verdict": verdict,
        "outcome": OUTCOMES[verdict.status] if report.accuracy else "Not measured",
        "sentence": sentence(report),
        "facts": facts(report),
        "accuracies": accuracies(report),
        "reliability": reliability(report),
        "curves": curves.stage_curves(run_dir, stage.config.stage),
        "slices": slices(report),
        "mistakes": mistakes,
        "parents": [(parent.stage, parent.sha256) for parent in stage.parents],
    }


def sentence(report: ReportCard) -> str:
    """What was measured, and beside what."""
    if report.accuracy is None:
        return "No labelled prompt is held out, so nobody knows how often these scores agree with people."
    accuracy = report.accuracy
    text = (
        f"The reward model scores the chosen answer higher in {interval(accuracy)} of {accuracy.n} held-out pairs of "
        f"{accuracy.prompts} prompts. A coin gets 50 %."
    )
    if best := report.best_baseline:
        text += f" The best baseline in training, “{best.name}”, gets {interval(report.baselines[best.name])}."
    return text


def facts(report: RewardReport) -> list[tuple[str, str, str]]:
    """(what, number, note) of the headline."""
    if report.accuracy is None:
        return [("Training pairs", str(report.pairs.train), "none held out")]
    rows = [("Accuracy", percent(report.accuracy.value), "of the held-out pairs, each prompt alike")]
    if best := report.best_baseline:
        ahead, interval_of_it = in_points(best.difference).split(" ", 1)
        rows.append(("Ahead by", ahead, f"{interval_of_it} points of “{best.name}”"))
    if report.ceiling:
        rows.append(("Ceiling", percent(report.ceiling.accuracy.value), "the most that these labels allow"))
    if (heads := report.agreement) and heads.difference:
        apart, interval_of_it = in_points(heads.difference).split(" ", 1)
        rows.append(("Heads", apart, f"{interval_of_it} points more accurate where all {heads.heads} agree"))
    if calibration := report.calibration:
        note = "above 1 the scores are too far apart"
        rows.append(("Temperature", decimals(calibration.temperature, 2), note))
    rows.append(("Pairs", str(report.pairs.train), f"trained on; {report.pairs.heldout} held out"))
    if report.learnt:
        rows.append(("Labels", str(report.learnt.labels), in_these_labels(report.learnt)))
    if report.start:
        rows.append(("Started as a probe", *since_the_start(report.start)))
    return rows


def since_the_start(choice: StartChoice) -> tuple[str, str]:
    """(which step's weights are the model's, by which figures)."""
    if choice.loss_at_start is None or choice.loss_trained is None:
        return "and stays one", "too few training prompts to tell whether training helps"
    figures = (
        f"loss {decimals(choice.loss_trained, 3)} trained and {decimals(choice.loss_at_start, 3)} at the start, on "
        f"{choice.kept_prompts} training prompts kept for that"
    )
    return (f"step {choice.step}" if choice.step else "training undone"), figures


def in_these_labels(learnt: Learnt) -> str:
    """`100 comparisons: 5 ties, 40 with a grade, 4 of an answer that was found bad`."""
    counts = {
        "ties": learnt.ties,
        "with a grade": learnt.graded,
        "of an answer that was found bad": learnt.below_others,
        "with an ideal answer": learnt.ideal,
    }
    text = f"{learnt.comparisons} comparisons"
    if kinds := ", ".join(f"{count} {kind}" for kind, count in counts.items() if count):
        text += f": {kinds}"
    if learnt.tie_threshold:
        text += f"; people tell answers apart half of the time if scores differ by {decimals(learnt.tie_threshold, 2)}"
    return text


def in_points(difference: Estimate) -> str:
    """`+5.4 [−1.5, +12.5]`."""
    scaled = {key: value and 100 * value for key, value in difference if key != "n"}
    return quantity(difference.model_copy(update=scaled), 1)


# ---- Accuracy beside what it must beat, and what it cannot --------------------------------------------------------


def accuracies(report: RewardReport) -> list[ForestRow]:
    """The reward model, the baselines, and the ceiling."""
    if report.accuracy is None:
        return []
    rows = [ForestRow("reward model", report.accuracy, _ahead(report), True)]
    if report.judge and report.judge.accuracy:
        rows.append(ForestRow("second reward model", report.judge.accuracy, _ahead(report.judge)))
    if probe := report.probe:
        note = f"{probe.reason}; the reward model is ahead by {in_points(probe.difference)} points"
        rows.append(ForestRow("probe of the model before training", probe, note))
    rows += [ForestRow(name, share, _learnt(name, report)) for name, share in report.baselines.items()]
    if ceiling := report.ceiling:
        note = (
            f"two annotators agree on {interval(ceiling.agreement)} of {ceiling.agreement.n} pairs that both put in "
            "order; if all pairs are equally hard, a perfect model agrees with one annotator this often"
        )
        rows.append(ForestRow("ceiling: a perfect model", ceiling.accuracy, note))
    return rows


def _ahead(card: ReportCard) -> str:
    if (best := card.best_baseline) is None:
        return ""
    return f"ahead of the best baseline in training, {best.name}, by {in_points(best.difference)} points"


def _learnt(name: str, report: ReportCard) -> str:
    """What a baseline learnt from the training pairs."""
    baseline = report.baselines[name]
    if baseline.words is not None:
        return f"the best length is {baseline.words} words"
    if baseline.reversed is not None:
        return "reversed, as was right more often in training" if baseline.reversed else ""
    return "learnt from the training pairs which words are preferred; it knows neither order nor prompt"


def reliability(report: ReportCard) -> Markup:
    """How often the model is right against how sure it is."""
    points = []
    for point in report.reliability or ():
        if point.right.value is not None:
            low, high = point.right.ci_low, point.right.ci_high
            points.append(plots.Point(point.confidence, point.right.value, str(point.right.n), "chosen", low, high))
    return plots.against_diagonal(points, "confidence", "share that is right", (0.5, 1.0))


# ---- Slices -----------------------------------------------------------------------------------------------------


def slices(report: ReportCard) -> list[tuple[str, dict[str, Share]]]:
    """(what the pairs are sliced by, accuracy in each slice) where there is more than one slice."""
    tables = []
    for key, title in SLICES.items():
        shares: dict[str, Share] | None = getattr(report, key)
        if shares and len(shares) > 1:
            names = GRADES if key == "by_strength" else {}
            tables.append((title, {names.get(name, name): share for name, share in shares.items()}))
    return tables

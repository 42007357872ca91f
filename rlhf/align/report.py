"""The page of an alignment by PPO, GRPO, RLOO or best of n: align/report.html, one file that needs nothing else.

Made as the comparison's page is (`rlhf.compare.report`): every text is escaped, and the same policy stands in it. It
says how the training went. Whether the policy is better, the comparison says, on prompts that no stage trained on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from markupsafe import Markup

from rlhf.align.config.online import GRPOConfig, OnlineConfig, RLOOConfig
from rlhf.align.config.paid import PaidConfig
from rlhf.align.schema import BestOfNReport, Evaluation, OnlineReport, PaidReport, RolloutSample
from rlhf.html import ENDS, LENGTH, REPEATS, MeasureRow, environment, measure_rows
from trueup.artifacts.manifest import Finding
from trueup.data.containers.appended import read_appended
from trueup.data.records import Message
from trueup.files import write_atomically
from trueup.models.templates.block import inside
from trueup.pages import curves, plots
from trueup.pages.wording import duration, quantity, short, title, weight
from trueup.runs import StageRun
from trueup.stages import title_of

TEMPLATE = "align/report.html.jinja"
MOST_ROLLOUTS = 40
"""The page shows samples of so many rollouts, evenly spaced; samples.jsonl has all."""
EXTREMES = 3
"""Samples shown of the best and of the worst paid."""

REWARDS = {
    "reward_model": "the reward model, in its standard deviations on held-out answers",
    "rubric": "a written rule",
    "ifeval": "1 where all instructions of the prompt are followed, 0 where not",
    "gsm8k": "1 where the final number is right, 0 where not",
}
WHEN = {
    "ppo": "Take PPO if answers are long and only some of their tokens are to blame: its critic says which. It has the "
    "most settings.",
    "grpo": "Take GRPO if several answers to a prompt are cheap to draw and to pay: it needs no critic.",
    "rloo": "Take RLOO as GRPO, if a reward is for the whole answer and each rollout is passed over once.",
    "best_of_n": "Take best of n before the others: it is as steady as SFT, stays near the policy at the start, and "
    "shows what the reward is worth. It gains no more than the best of n answers has.",
}
"""When to take each algorithm."""
MEASURES = (
    MeasureRow("scores", "Reward", "mean over the answers, less what a missing end of turn costs", ".2f"),
    MeasureRow("kl", "KL to the reference", "nats per answer", ".2f"),
    MeasureRow("length", *LENGTH),
    MeasureRow("eos_rate", *ENDS),
    MeasureRow("entropy", "Entropy", "nats per token", ".2f"),
    MeasureRow("repetition", *REPEATS),
    MeasureRow("explained_variance", "Explained variance", "of the returns, by the critic", ".2f"),
)


def write_report(stage: StageRun, report: OnlineReport | BestOfNReport) -> None:
    """Write report.html of the align stage at work, from its report and what it left beside it."""
    page = environment().get_template(TEMPLATE).render(gather(stage, report))
    write_atomically(stage.dir / "report.html", page)


def gather(stage: StageRun, report: OnlineReport | BestOfNReport) -> dict[str, object]:
    """Everything that the template shows."""
    config = stage.config
    assert isinstance(config, PaidConfig)
    rows = read_appended(stage.dir / "samples.jsonl", RolloutSample)
    samples = samples_of(rows)
    verdict = stage.verdict
    rollouts = report.rollouts if isinstance(report, OnlineReport) else []
    return {
        "name": title_of(config.run_dir),
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "algorithm": report.algorithm.upper() if isinstance(report, OnlineReport) else "best of n",
        "when": WHEN[report.algorithm],
        "report": report,
        "config": config,
        "verdict": verdict,
        "why": why_this_step(config, report, verdict.findings),
        "facts": facts(config, report, time.time() - stage.started),
        "rewards": reward_rows(config, report),
        "steps": step_rows(config, report),
        "way": way(config, report),
        "measures": measure_rows(MEASURES, [rollouts[0], rollouts[-1]]) if rollouts else [],
        "rollouts": len(rollouts),
        "best": report if isinstance(report, BestOfNReport) else None,
        "curves": curves.stage_curves(config.run_dir, config.stage),
        "samples": samples,
        "sampled": len({row.step for row in rows}),
        "extremes": extremes(samples) if isinstance(config, OnlineConfig) else [],
        "parents": [(parent.stage, parent.sha256) for parent in stage.parents],
        "inputs": stage.inputs,
    }


# ---- The result -------------------------------------------------------------------------------------------------


def why_this_step(config: PaidConfig, report: PaidReport, findings: Sequence[Finding]) -> str:
    """Why the chosen step is the result, as a sentence."""
    chosen_step, evaluations = report.chosen_step, by_step(report)
    if config.full_finetuning:
        return "It is the last step: what is kept along the way are adapters, and every weight was trained."
    if not evaluations:
        return "It is the last step: no prompts were kept to choose one by (eval_prompts)."
    prompts, budget = config.eval_prompts, config.kl_budget
    if any(finding.code == "no_step_within_budget" for finding in findings):
        sentence = f"No kept step is within the budget of {quantity(budget, 1)} nats; this one is nearest to it."
    else:
        within = "" if budget is None else f" among those within the budget of {quantity(budget, 1)} nats"
        figure = "mean reward"
        if report.chosen_by == "second_reward":
            figure += " by the second reward model, which was trained on other prompts than the one that pays"
        sentence = (
            f"Of the steps that were kept it has the highest {figure}{within}, on {prompts} prompts kept for this."
        )
    first = evaluations.get(0)
    if first and chosen_step in evaluations and evaluations[chosen_step].reward <= first.reward:
        sentence += " The policy at the start has no less: nothing was gained."
    return sentence


def by_step(report: PaidReport) -> dict[int, Evaluation]:
    return {row.step: row for row in report.evaluations}


def facts(config: PaidConfig, report: PaidReport, seconds: float) -> list[tuple[str, str, str]]:
    """(what, number, note) of the headline."""
    evaluations, chosen_step = by_step(report), report.chosen_step
    rows = []
    if 0 in evaluations and chosen_step in evaluations:
        before, after = evaluations[0], evaluations[chosen_step]
        gain = after.reward - before.reward
        rows.append(("Reward", quantity(after.reward), f"{quantity(before.reward)} before"))
        rows.append(("Gain", f"{'+' if gain > 0 else ''}{quantity(gain)}", "in units of reward"))
        budget = "" if config.kl_budget is None else f"; budget {quantity(config.kl_budget, 1)}"
        rows.append(("KL", quantity(after.kl), f"nats per answer, to {config.start_title}{budget}"))
    rows.append(("Steps", str(report.steps_trained), f"{config.train_batch_size} answers each"))
    if isinstance(report, BestOfNReport):
        rows.append(("Imitated", str(report.imitated), f"best answers of {report.answers}"))
    if isinstance(report, OnlineReport) and (coefficient := report.kl_coef):
        first, last = coefficient.first, coefficient.last
        note = "a nat, in units of reward" if first == last else f"a nat at the end; {short(first)} at first"
        rows.append(("Price of KL", short(last), note))
    rows.append(("Time", duration(seconds), "of this stage, since it was last started"))
    return rows


@dataclass(frozen=True)
class StepRow:
    step: int
    reward: float
    kl: float
    note: str
    chosen: bool
    over: bool
    """Over the KL budget."""
    second: float | None = None
    """Reward by the second reward model, where there is one: what the result was chosen by."""


def step_rows(config: PaidConfig, report: PaidReport) -> list[StepRow]:
    """How the policy at the start, every kept step and the last one did on the prompts kept to choose by."""
    rows = []
    for step, row in sorted(by_step(report).items()):
        chosen = step == report.chosen_step
        over = config.kl_budget is not None and row.kl > config.kl_budget
        notes = ([config.start_title] if step == 0 else []) + (["the result"] if chosen else [])
        notes += ["over the budget"] if over else []
        rows.append(StepRow(step, row.reward, row.kl, ", ".join(notes), chosen, over, row.second_reward))
    return rows


def way(config: PaidConfig, report: PaidReport) -> Markup:
    """Reward against KL of the evaluated steps; empty with fewer than two of them."""
    rows = step_rows(config, report)
    points = [
        plots.Point(row.kl, row.reward, "start" if row.step == 0 else str(row.step), "chosen" if row.chosen else "")
        for row in rows
    ]
    return plots.trace(points, "KL, nats per answer", "reward", config.kl_budget) if len(points) > 1 else Markup("")


def reward_rows(config: PaidConfig, report: PaidReport) -> list[tuple[str, str, str]]:
    """(what, what that is, its weight) of all that an answer is paid for, and of what it costs."""
    rows, away = [], f"a nat away from {config.start_title}"
    for name, factor in report.rewards.items():
        meaning = REWARDS.get(name, "a function of your own")
        if name == "reward_model":
            units = report.normalisation
            meaning += f" (mean {quantity(units.mean)}, standard deviation {quantity(units.std)})"
            if report.reward_caution:
                meaning += f", less {quantity(report.reward_caution)} standard deviations over its heads"
        rows.append((title(Path(name).name), meaning, weight(factor)))
    rows.append(("no end of turn", "an answer that did not end by itself", weight(-config.missing_eos_penalty)))
    if isinstance(report, OnlineReport) and report.kl_coef:
        rows.append(("KL", away, weight(-report.kl_coef.last)))
    elif isinstance(config, RLOOConfig):
        rows.append(("KL", away, weight(-config.beta)))
    elif isinstance(config, GRPOConfig):
        rows.append(("KL", f"{away}, token by token, in the loss", weight(-config.beta)))
    return rows


# ---- Samples ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    step: int
    prompt: list[Message]
    reasoning: str
    completion: str
    figures: list[tuple[str, str]]
    """(what, number): score, KL, total, and the parts of the score where it has several."""
    total: float


def samples_of(rows: Sequence[RolloutSample]) -> list[tuple[int, list[Sample]]]:
    """[(step at which a rollout was drawn, its samples)] of the first rollout, the last, and others evenly between."""
    rollouts: dict[int, list[Sample]] = {}
    for row in rows:
        rollouts.setdefault(row.step, []).append(_sample(row))
    steps = sorted(rollouts)
    if len(steps) > MOST_ROLLOUTS:
        gap = (len(steps) - 1) / (MOST_ROLLOUTS - 1)
        steps = [steps[round(i * gap)] for i in range(MOST_ROLLOUTS)]
    return [(step, rollouts[step]) for step in steps]


def _sample(row: RolloutSample) -> Sample:
    figures = [("score", quantity(row.score)), ("KL", quantity(row.kl)), ("total", quantity(row.total))]
    if len(row.rewards) > 1:
        figures += [
            (title(Path(name).name), "no opinion" if value is None else quantity(value))
            for name, value in row.rewards.items()
        ]
    return Sample(row.step, row.prompt, inside(row.reasoning), row.completion, figures, row.total)


def extremes(rollouts: Sequence[tuple[int, Sequence[Sample]]]) -> list[tuple[str, list[Sample]]]:
    """The best and the worst paid of the samples from the second half of the rollouts; none with too few of them."""
    late = [sample for _, samples in rollouts[len(rollouts) // 2 :] for sample in samples]
    if len(late) < 2 * EXTREMES:
        return []
    by_total = sorted(late, key=lambda sample: -sample.total)
    return [("Paid most", by_total[:EXTREMES]), ("Paid least", by_total[: -EXTREMES - 1 : -1])]

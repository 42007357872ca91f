"""Judges of a comparison: what says which of two answers is preferred, and the figures that follow from what it says.

There are two kinds. One scores each answer by itself (a rubric, a reward model), and so compares any two policies. The
other looks at two answers at a time (people's blind votes, a language model behind an endpoint); it is asked about the
SFT policy and the aligned one alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rlhf.compare.answers import (
    ALIGNED,
    SFT,
    Answers,
    ComparedCompletions,
    Scores,
    Verdicts,
    length_differences,
    on_common_prompts,
    outcome_tables,
)
from rlhf.compare.config import CompareConfig
from rlhf.compare.endpoint_judge import endpoint_tables, without_verdict
from trueup import runs
from trueup.artifacts.reports import ControlledRate, JudgeFigures, OwnFigures, Rate
from trueup.console import progress, say
from trueup.data.records import CandidateSet
from trueup.data.rubric import load_rubric, rubric_version
from trueup.judging.endpoint import Endpoint
from trueup.judging.votes import VOTES, Vote, current, read_votes
from trueup.models.loading import Loaded, load_reward_model, read_tokenizer
from trueup.models.policies import reward_model_config
from trueup.models.scoring import Reading, conversion, read_answers, score_readings
from trueup.runs import Finding
from trueup.statistics import length_control, win_rates


@dataclass(frozen=True)
class Judge:
    """Who judges, and how far the verdict may rest on it."""

    name: str
    description: str
    """How a sentence names it: whether people, a program or a model judges."""
    made_the_labels: bool
    """Whether the policy was trained towards this judge's preference, by its labels or by what was learnt from them."""
    independent: bool
    """Whether it knows nothing of the labels that the policy was trained on. A judge that made them is no evidence
    beyond them, and one that learnt from them repeats their mistakes."""


@dataclass(frozen=True)
class ScoringJudge(Judge):
    """Higher is preferred, equal is a tie."""

    score: Callable[[Sequence[CandidateSet], Answers], list[list[float]]]
    """(P prompts, P lists of answers) -> P lists of scores, NaN for an answer that the judge cannot read."""


@dataclass(frozen=True)
class PairJudge(Judge):
    verdicts: Callable[[ComparedCompletions], Verdicts]


# ---- The judges -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelOrigins:
    """Who or what the campaign's labels come from, by the label stage's report."""

    by_source: dict[str, int]
    rubric: str | None
    """The rubric of simulated labels."""
    rubric_version: str | None = None
    judge_model: str | None = None
    """The language model behind an endpoint that made labels."""

    @property
    def who(self) -> str:
        return ", ".join(f"{count} {source}" for source, count in self.by_source.items()) or "unknown"


def rubric_judge(config: CompareConfig, labels: LabelOrigins) -> Judge:
    """A rubric: the preference itself where the labels were simulated by it, a stranger to them otherwise."""
    assert config.rubric is not None  # the campaign completes it
    rubric = load_rubric(config.rubric)

    def score_all(rows: Sequence[CandidateSet], answers: Answers) -> list[list[float]]:
        return [
            [rubric.score(row.prompt, candidate.text, candidate.finished) for candidate in candidates]
            for row, candidates in zip(rows, answers, strict=True)
        ]

    made_the_labels = (labels.rubric, labels.rubric_version) == (rubric.name, rubric_version(config.rubric))
    return ScoringJudge("rubric", f"rubric {rubric.name}, simulated", made_the_labels, not made_the_labels, score_all)


def reward_model_judge(config: CompareConfig, labels: LabelOrigins) -> Judge:
    """The campaign's reward model. It learnt from the labels that the policy learnt from: no independent evidence. One
    that is used as it came is independent, unless it made the labels or paid for the policy's answers."""
    scores = RewardScores(runs.stage_dir(config.run_dir, "reward") / "model", config)
    reward, align = (runs.find_stage(config.run_dir, stage) for stage in ("reward", "align"))
    if reward is None or reward.manifest.identity.get("learning_rate") != 0:
        return ScoringJudge("reward_model", "the reward model, learnt from the same labels", True, False, scores)
    paid = align is not None and align.manifest.parent_sha256("reward") is not None
    towards = paid or "reward_model" in labels.by_source
    return ScoringJudge("reward_model", "a reward model that was not trained here", towards, not towards, scores)


def second_reward_model_judge(config: CompareConfig, labels: LabelOrigins) -> Judge:
    """A reward model of prompts that trained nothing else (`split.judge_fraction`)."""
    directory = runs.stage_dir(config.run_dir, "reward") / "judge" / "model"
    description = "a second reward model, learnt from prompts that trained nothing else"
    return ScoringJudge("second_reward_model", description, True, True, RewardScores(directory, config))


class RewardScores:
    """Scores by a saved reward model, each distinct answer once.

    Equal answers must tie, and scores of one answer differ in their last digits from batch to batch. Answers are equal
    if the reward model reads the same tokens.
    """

    def __init__(self, directory: Path, config: CompareConfig):
        self.directory, self.config = directory, config
        self._model: Loaded | None = None
        self._scores: dict[Reading, float] = {}

    def __call__(self, rows: Sequence[CandidateSet], answers: Answers) -> list[list[float]]:
        reward_model = self._model = self._model or self._load()
        readings = [
            read_answers(reward_model, [row.prompt] * len(completions), completions)
            for row, completions in zip(rows, answers, strict=True)
        ]
        every = dict.fromkeys(reading for row in readings for reading in row if reading is not None)
        new = [reading for reading in every if reading not in self._scores]
        if new:
            values = score_readings(reward_model, new, on_progress=lambda count: progress(count, len(new)))
            self._scores.update(zip(new, values, strict=True))
        return [[math.nan if reading is None else self._scores[reading] for reading in row] for row in readings]

    def _load(self) -> Loaded:
        run_dir, model = self.config.run_dir, self.config.model
        loaded = load_reward_model(self.directory, reward_model_config(run_dir, model))
        policy = read_tokenizer(runs.open_stage(run_dir, "sft").dir / "model", model)
        if (converted := conversion(loaded.tokenizer, policy)) is not None:
            say(f"{'reward model':<12} {converted}")
        return loaded


def endpoint_judge(config: CompareConfig, labels: LabelOrigins) -> Judge:
    """A language model behind an endpoint, asked in both orders. Its replies stay beside the report."""
    assert config.judge_url and config.judge_model  # the config demands them

    def verdicts(comparison: ComparedCompletions) -> Verdicts:
        return endpoint_tables(
            Endpoint(str(config.judge_url), str(config.judge_model), config.judge_parameters),
            comparison.rows,
            comparison.by_policy[SFT],
            comparison.by_policy[ALIGNED],
            runs.stage_dir(config.run_dir, "compare") / "judge_replies.jsonl",
            pairs_per_prompt=config.judge_pairs_per_prompt,
            seed=config.seed,
            confidence=config.confidence,
        )

    made_the_labels = labels.judge_model == config.judge_model
    description = f"language model {config.judge_model}, asked in both orders"
    return PairJudge("endpoint", description, made_the_labels, not made_the_labels, verdicts)


def votes_judge(config: CompareConfig, labels: LabelOrigins) -> Judge:
    """People who saw two answers and not whose they were. Votes on answers that are no longer these do not count."""

    def verdicts(comparison: ComparedCompletions) -> Verdicts:
        sides = zip(comparison.by_policy[SFT], comparison.by_policy[ALIGNED], strict=True)
        texts = {
            row.prompt_id: ([answer.text for answer in sft], [answer.text for answer in aligned])
            for row, (sft, aligned) in zip(comparison.rows, sides, strict=True)
        }
        votes, others = current(read_votes(config.run_dir / VOTES), texts)
        by_prompt: dict[str, list[Vote]] = {}
        for vote in votes:
            by_prompt.setdefault(vote.prompt_id, []).append(vote)
        size = len(comparison.rows[0].candidates)
        tables = []
        for row, aligned in zip(comparison.rows, comparison.by_policy[ALIGNED], strict=True):
            on_it = by_prompt.get(row.prompt_id, [])
            table = np.full((max(1, len(on_it)), size, size), np.nan)  # a layer for each vote
            for layer, vote in enumerate(on_it):
                table[layer, vote.sft_index, vote.aligned_index] = vote.outcome
            if votes and len({answer.text for answer in (*row.candidates, *aligned)}) == 1:
                table[0, 0, -1] = 0.5  # nobody is asked which of two equal texts is better
            tables.append(table)
        voters = len({vote.voter for vote in votes})
        own = OwnFigures(votes=len(votes), voters=voters, votes_on_other_completions=others)
        return Verdicts(tables, own, _about_votes(votes, voters, others))

    return PairJudge("votes", "people's blind votes", False, True, verdicts)


def _about_votes(votes: Sequence[Vote], voters: int, others: int) -> list[Finding]:
    findings = []
    if not votes:
        message = "nobody has voted on these answers yet: trueup serve RUN, Vote; then compare again"
        findings.append(Finding("warn", "no_votes", message))
    elif voters == 1:
        findings.append(Finding("info", "one_voter", f"all {len(votes)} votes are one person's"))
    if others:
        findings.append(
            Finding("info", "votes_on_other_completions", f"{others} votes are on answers that are no more")
        )
    return findings


JUDGES: dict[str, Callable[[CompareConfig, LabelOrigins], Judge]] = {
    "rubric": rubric_judge,
    "reward_model": reward_model_judge,
    "second_reward_model": second_reward_model_judge,
    "votes": votes_judge,
    "endpoint": endpoint_judge,
}

# ---- What a judge says of two policies --------------------------------------------------------------------------


@dataclass(frozen=True)
class JudgeResult:
    """What one judge says of the SFT and the aligned policy."""

    by: Judge
    scores: dict[str, Scores]
    """{policy: (P, K)}; empty of a judge that looks at pairs."""
    verdicts: Verdicts
    win_rate: win_rates.WinRate
    length_controlled: length_control.LengthControlled
    minimum_detectable_effect: float
    by_category: dict[str, win_rates.WinRate]

    def win_share(self, prompt: int) -> float | None:
        """Share of the comparisons on one prompt that the aligned policy won; None where there was none."""
        table = self.verdicts.tables[prompt]
        return None if np.isnan(table).all() else float(np.nanmean(table))

    def report(self) -> JudgeFigures:
        """The figures for the report."""
        equal_length, effect = self.length_controlled, self.minimum_detectable_effect
        return JudgeFigures(
            description=self.by.description,
            made_the_labels=self.by.made_the_labels,
            independent=self.by.independent,
            win_rate=rate_of(self.win_rate),
            length_controlled_win_rate=ControlledRate(
                **dict(equal_length.interval.estimate()), slope=equal_length.slope, note=equal_length.note
            ),
            minimum_detectable_effect=effect if math.isfinite(effect) else None,
            by_category={name: rate_of(rate) for name, rate in self.by_category.items()},
            **dict(self.verdicts.own),
        )


def rate_of(rate: win_rates.WinRate) -> Rate:
    """The rate for the report, where `n` counts comparisons."""
    counts = {"wins": rate.wins, "ties": rate.ties, "losses": rate.losses}
    return Rate(**{**dict(rate.interval.estimate()), **counts, "n": sum(counts.values()), "prompts": rate.interval.n})


def judge(by: Judge, comparison: ComparedCompletions, config: CompareConfig) -> JudgeResult:
    """Have the judge look at everything it can, and compare the SFT policy with the aligned one."""
    scores: dict[str, Scores] = {}
    if isinstance(by, ScoringJudge):
        every = {name: by.score(comparison.rows, answers) for name, answers in comparison.by_policy.items()}
        scores = on_common_prompts(every)
        findings = _about_unread(by, scores[SFT])
        verdicts = Verdicts(outcome_tables(SFT, ALIGNED, scores[SFT], scores[ALIGNED]), findings=findings)
    else:
        assert isinstance(by, PairJudge)
        verdicts = by.verdicts(comparison)
    differences = length_differences(comparison.by_policy[SFT], comparison.by_policy[ALIGNED])
    categories = [row.category for row in comparison.rows]
    return figures(by, scores, verdicts, differences, categories, config.confidence, config.seed)


def _about_unread(by: Judge, scores: Scores) -> list[Finding]:
    """A finding on the prompts without scores, if there are any."""
    unread = sum(math.isnan(row[0]) for row in scores)
    message = (
        f"the judge {by.name} gave no verdict on {unread} of {len(scores)} prompts, since it cannot read an answer"
    )
    return [without_verdict(message, unread, len(scores))] if unread else []


def figures(
    by: Judge,
    scores: dict[str, Scores],
    verdicts: Verdicts,
    differences: list[np.ndarray],
    categories: Sequence[str | None],
    confidence: float,
    seed: int,
) -> JudgeResult:
    """Win rates from P tables (K, K); `differences` are those of the lengths, in tables alike."""
    differences = [np.broadcast_to(d, t.shape) for d, t in zip(differences, verdicts.tables, strict=True)]
    return JudgeResult(
        by,
        scores,
        verdicts,
        win_rates.win_rate(verdicts.tables, confidence, seed),
        length_control.length_controlled_win_rate(verdicts.tables, differences, confidence, seed),
        win_rates.minimum_detectable_effect(verdicts.tables, confidence),
        win_rates.by_group(verdicts.tables, categories, confidence, seed),
    )


def compare_scores(a: str, b: str, scores: Mapping[str, Scores], confidence: float, seed: int) -> win_rates.WinRate:
    """How often b's answers score higher than a's."""
    tables = outcome_tables(a, b, scores[a], scores[b])
    return win_rates.win_rate(tables, confidence, seed)

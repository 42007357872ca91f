"""Comparison: did alignment change the answers in the wanted direction, and by more than chance?

Reads   candidates/candidates.jsonl (the SFT policy's answers to held-out prompts), sft/model, align/model, and
        reward/model where the reward model is a judge.
Writes  compare/: samples.jsonl (every prompt, both policies' answers, every judge's scores), report.json, report.html,
        manifest.json.
Source  all pairs of answers, intervals over prompts: `trueup.statistics`; length control: Dubois et al. 2024,
        https://arxiv.org/abs/2404.04475.

Both policies are sampled with the same settings and the same random numbers, so an unchanged policy answers alike and
the verdict on it is "no detectable change", not a coin toss. The verdict speaks of a preference that was learnt, never
of better answers: a judge knows its preference and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from rlhf.config import CompareConfig
from rlhf.report import read_json, write_report
from trueup import runs, statistics
from trueup.console import progress, say
from trueup.errors import DataError, RunError
from trueup.models import load_policy, load_reward_model, place
from trueup.records import Candidate, CandidateSet, is_heldout, read_rows, write_rows
from trueup.rubric import RUBRICS, words
from trueup.runs import Finding, FinishedStage
from trueup.sampling import Decoding, completion_logps, sample_directory, score

FEW_PROMPTS = 20
"""Below this many held-out prompts an interval over prompts is itself a guess."""
KL_ANSWERS = 1
"""Answers per prompt in the KL estimate: each costs a pass of the reference."""


def run(config: CompareConfig) -> Path:
    stage = runs.begin(config)
    parents = {parent.stage: parent for parent in stage.parents}

    # 1. Inputs -------------------------------------------------------------------------------------------------------
    rows, decoding = read_reference(parents["sample"], parents["sft"], config)
    prompts = [row.prompt for row in rows]
    reference = [row.candidates for row in rows]
    per_prompt = len(reference[0])
    say(f"{'prompts':<12} {len(rows)} held out, {per_prompt} answers of each policy")
    say(f"{'decoding':<12} {', '.join(f'{key} {value}' for key, value in decoding.provenance().items())}")

    # 2. The aligned policy's answers ---------------------------------------------------------------------------------
    aligned: list[list[Candidate]] = [[] for _ in rows]
    answered = 0
    for batch in sample_directory(
        parents["align"].dir / "model",
        config.model,
        prompts,
        decoding,
        per_prompt,
        config.batch_size,
        config.num_workers,
    ):
        for i, candidates in batch:
            aligned[i] = candidates
        answered += len(batch)
        progress(answered, len(rows))

    # 3. Judges -------------------------------------------------------------------------------------------------------
    answers = Answers(rows, reference, aligned)
    labels = read_labels(config.run_dir)
    judges: dict[str, Judged] = {}
    for name in config.judges:
        judges[name] = judged = judge(JUDGES[name](config, parents, labels), answers, config)
        controlled = judged.length_controlled.interval
        say(f"{name:<12} wins {percent(judged.win_rate.interval)}; at equal length {percent(controlled)}")

    # 4. What else changed --------------------------------------------------------------------------------------------
    say(f"{'KL':<12} by {KL_ANSWERS} answer per prompt, scored by the reference")
    kl = kl_to_reference(parents["sft"], prompts, aligned, config)
    before, after = describe(reference), describe(aligned)
    identical = answers.share_identical()
    say(f"{'KL':<12} {kl.value:.2f} nats per sequence; {identical:.0%} of answers are the same, token by token")

    # 5. Verdict ------------------------------------------------------------------------------------------------------
    first = judges[config.judges[0]]
    stage.findings += [verdict(first, len(rows), identical), *warnings(judges, before, after, len(rows))]
    if not first.made_the_labels:
        stage.find("warn", "judge_is_not_the_labeller", not_the_labeller(first, labels))

    # 6. Save ---------------------------------------------------------------------------------------------------------
    write_rows(stage.dir / "samples.jsonl", (sample_row(answers, judges, i) for i in range(len(rows))))
    stage.write_json(
        "report.json",
        {
            "policies": {
                "reference": policy(parents["sft"]),
                "aligned": {
                    **policy(parents["align"]),
                    "algorithm": parents["align"].manifest["identity"].get("algorithm"),
                },
            },
            "prompts": len(rows),
            "samples_per_prompt": per_prompt,
            "confidence": config.confidence,
            "decoding": decoding.provenance(),
            "sources": labels.by_source,
            "judges": {name: judged.as_json() for name, judged in judges.items()},
            "kl_nats": {**kl.as_json(), "samples_per_prompt": KL_ANSWERS},
            "identical_answers": identical,
            **{key: {"reference": before[key], "aligned": after[key]} for key in before},
            "heldout_loss": {
                "reference": sft_loss(parents["sft"]),
                "aligned": None,
                "note": "the loss on demonstrations is measured by the SFT stage, of its own policy only",
            },
            "verdict": {
                "status": stage.verdict["status"],
                "code": stage.findings[0].code,
                "message": stage.findings[0].message,
            },
        },
    )
    stage.facts.update(place(config.model).facts)
    write_report(config.run_dir, stage)
    return stage.finish()


# ---- Inputs -----------------------------------------------------------------------------------------------------


def read_reference(
    sample: FinishedStage, sft: FinishedStage, config: CompareConfig
) -> tuple[list[CandidateSet], Decoding]:
    """The SFT policy's answers to held-out prompts, and the settings that they were sampled with."""
    path = sample.dir / "candidates.jsonl"
    rows = [row for row in read_rows(path, CandidateSet) if row.split == "heldout"]
    if not rows:
        raise DataError(
            f"{path}: no held-out prompt among them, so nothing can be compared: give more prompts (sample.prompts, "
            "sample.max_prompts) or raise split.heldout_fraction"
        )
    for row in rows:
        if not is_heldout(row.prompt, config.split):
            raise RunError(
                f"{path}: prompt {row.prompt_id} is not held out by this campaign's split: run `trueup sample` again"
            )
        if row.sampler.get("policy_sha256") != sft.sha256:
            raise RunError(f"{path}: answers of another SFT policy than {sft.dir}: run `trueup sample` again")
        if row.sampler != rows[0].sampler or len(row.candidates) != len(rows[0].candidates):
            raise RunError(f"{path}: its prompts were sampled with different settings: run `trueup sample` again")
    decoding = Decoding(**{field.name: rows[0].sampler[field.name] for field in fields(Decoding)})
    return rows, decoding


@dataclass(frozen=True)
class Labels:
    """Who or what the campaign's labels come from, by the label stage's report."""

    by_source: dict[str, int]
    rubric: str | None
    """The rubric of simulated labels."""

    @property
    def who(self) -> str:
        return ", ".join(f"{count} {source}" for source, count in self.by_source.items()) or "unknown"


def read_labels(run_dir: Path) -> Labels:
    """What made the labels. They stand in the run directory, since the aligned policy was trained on them."""
    label = runs.find_stage(run_dir, "label")
    if label is None:
        return Labels({}, None)
    by_source = read_json(label.dir / "report.json").get("by_source") or {}
    return Labels(by_source, label.manifest.get("identity", {}).get("rubric") if "simulated" in by_source else None)


def policy(stage: FinishedStage) -> dict[str, Any]:
    return {"stage": stage.stage, "manifest_sha256": stage.sha256}


def sft_loss(sft: FinishedStage) -> float | None:
    return (read_json(sft.dir / "report.json").get("heldout_loss") or {}).get("after")


# ---- Answers ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answers:
    """P prompts with K answers of each policy; the k-th of both share their random numbers."""

    rows: list[CandidateSet]
    reference: list[list[Candidate]]
    aligned: list[list[Candidate]]

    def share_identical(self) -> float:
        """Share of the k-th answers in which both policies said the same, token by token."""
        pairs = [
            (r, a) for rs, as_ in zip(self.reference, self.aligned, strict=True) for r, a in zip(rs, as_, strict=True)
        ]
        return sum(r.token_ids == a.token_ids for r, a in pairs) / len(pairs)

    def log_length_ratios(self) -> list[np.ndarray]:
        """log(aligned tokens / reference tokens) of every comparison, prompt by prompt; as `outcomes` lays them out."""
        return [
            np.log(_tokens(aligned))[None, :] - np.log(_tokens(reference))[:, None]
            for reference, aligned in zip(self.reference, self.aligned, strict=True)
        ]


def _tokens(candidates: Sequence[Candidate]) -> np.ndarray:
    return np.array([max(1, len(candidate.token_ids)) for candidate in candidates], dtype=float)


def describe(answers: Sequence[Sequence[Candidate]]) -> dict[str, float]:
    """How one policy's answers are, whatever a judge says of them."""
    candidates = [candidate for row in answers for candidate in row]
    said = [words(candidate.text) for candidate in candidates]
    bigrams = [bigram for text in said for bigram in _ngrams(text, 2)]
    return {
        "length_tokens": sum(len(candidate.token_ids) for candidate in candidates) / len(candidates),
        "eos_rate": sum(candidate.finished for candidate in candidates) / len(candidates),
        # Li et al. 2016, https://arxiv.org/abs/1510.03055, over all answers together; longer texts repeat more.
        "distinct_2": len(set(bigrams)) / len(bigrams) if bigrams else 0.0,
        "repetition": sum(len(set(t := _ngrams(text, 3))) < len(t) for text in said) / len(said),
    }


def _ngrams(text: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]


def kl_to_reference(
    sft: FinishedStage, prompts: Sequence[Any], aligned: Sequence[Sequence[Candidate]], config: CompareConfig
) -> statistics.Interval:
    """KL(aligned || SFT) in nats per sequence: mean of log pi(y) - log pi_ref(y) over the aligned policy's own answers.

    Exact in expectation for plain sampling at temperature 1. With top-k, top-p or another temperature the answers come
    from a narrower policy than the one whose log-probabilities are taken, so it is an estimate on what is really said.
    """
    asked = [prompt for prompt, candidates in zip(prompts, aligned, strict=True) for _ in candidates[:KL_ANSWERS]]
    answers = [candidate for candidates in aligned for candidate in candidates[:KL_ANSWERS]]
    own = [candidate.logp for candidate in answers]
    assert all(logp is not None for logp in own), "sampling records the log-probability of every answer"
    reference = completion_logps(load_policy(sft.dir / "model", config.model), asked, [c.token_ids for c in answers])
    ratios = np.array(own, dtype=float) - np.array(reference)  # (P * KL_ANSWERS,)
    return statistics.bootstrap_mean(ratios.reshape(-1, KL_ANSWERS), config.confidence, config.seed, bounds=None)


# ---- Judges -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judge:
    """What scores answers: higher is preferred, equal is a tie."""

    name: str
    description: str
    """As it stands in a sentence; says whether people, a program or a model judges."""
    made_the_labels: bool
    """Whether the policy was trained towards this judge's preference, by its labels or by what was learnt from them."""
    score: Callable[[list[CandidateSet], list[list[Candidate]]], list[list[float]]]
    """(P prompts, P lists of answers) -> P lists of scores."""


def rubric_judge(config: CompareConfig, parents: dict[str, FinishedStage], labels: Labels) -> Judge:
    """A rubric: the preference itself where the labels were simulated by it, a stranger to them otherwise."""
    rubric = RUBRICS[config.rubric]

    def score_all(rows: list[CandidateSet], answers: list[list[Candidate]]) -> list[list[float]]:
        return [
            [rubric.score(row.prompt, candidate.text, candidate.finished) for candidate in candidates]
            for row, candidates in zip(rows, answers, strict=True)
        ]

    return Judge("rubric", f"rubric {rubric.name}, simulated", labels.rubric == rubric.name, score_all)


def reward_model_judge(config: CompareConfig, parents: dict[str, FinishedStage], labels: Labels) -> Judge:
    """The campaign's reward model. It learnt from the labels that the policy learnt from: no independent evidence."""

    def score_all(rows: list[CandidateSet], answers: list[list[Candidate]]) -> list[list[float]]:
        reward_model = load_reward_model(parents["reward"].dir / "model", config.model)
        # Each distinct answer once: equal answers must tie, and scores of one row differ in their last digits from
        # batch to batch.
        keys = [[(i, tuple(candidate.token_ids)) for candidate in candidates] for i, candidates in enumerate(answers)]
        distinct = list(dict.fromkeys(key for row in keys for key in row))
        scores = score(
            reward_model,
            [rows[i].prompt for i, _ in distinct],
            [list(tokens) for _, tokens in distinct],
            on_progress=lambda done: progress(done, len(distinct)),
        )
        scored = dict(zip(distinct, scores, strict=True))
        return [[scored[key] for key in row] for row in keys]

    return Judge("reward_model", "the reward model, learnt from the same labels", True, score_all)


JUDGES: dict[str, Callable[[CompareConfig, dict[str, FinishedStage], Labels], Judge]] = {
    "rubric": rubric_judge,
    "reward_model": reward_model_judge,
}


@dataclass(frozen=True)
class Judged:
    """What one judge says of both policies."""

    name: str
    description: str
    made_the_labels: bool
    reference: list[list[float]]
    """(P, K) scores."""
    aligned: list[list[float]]
    outcomes: list[np.ndarray]
    """P arrays: every comparison of two answers to one prompt, 1 where the aligned one wins."""
    win_rate: statistics.WinRate
    length_controlled: statistics.LengthControlled
    minimum_detectable_effect: float

    def as_json(self) -> dict[str, Any]:
        rate, controlled = self.win_rate, self.length_controlled
        counts = {"wins": rate.wins, "ties": rate.ties, "losses": rate.losses}
        return {
            "description": self.description,
            "made_the_labels": self.made_the_labels,
            "win_rate": {**rate.interval.as_json(), **counts, "n": sum(counts.values())},
            "length_controlled_win_rate": {
                **controlled.interval.as_json(),
                "slope": controlled.slope,
                "note": controlled.note,
            },
            "minimum_detectable_effect": _finite(self.minimum_detectable_effect),
        }


def judge(by: Judge, answers: Answers, config: CompareConfig) -> Judged:
    """Score both policies' answers in one go, and compare them prompt by prompt."""
    together = [[*r, *a] for r, a in zip(answers.reference, answers.aligned, strict=True)]
    scores = by.score(answers.rows, together)
    split = len(answers.reference[0])
    return compare(
        by, [row[:split] for row in scores], [row[split:] for row in scores], answers.log_length_ratios(), config
    )


def compare(
    by: Judge,
    reference: list[list[float]],
    aligned: list[list[float]],
    log_length_ratios: list[np.ndarray],
    config: CompareConfig,
) -> Judged:
    """Win rates from scores (P, K) of both policies; log_length_ratios is P times (K, K)."""
    tables = [statistics.outcomes(r, a) for r, a in zip(reference, aligned, strict=True)]
    compared = [~np.isnan(table) for table in tables]
    outcomes = [table[kept] for table, kept in zip(tables, compared, strict=True)]
    ratios = [ratio[kept] for ratio, kept in zip(log_length_ratios, compared, strict=True)]
    return Judged(
        by.name,
        by.description,
        by.made_the_labels,
        reference,
        aligned,
        outcomes,
        statistics.win_rate(outcomes, config.confidence, config.seed),
        statistics.length_controlled_win_rate(outcomes, ratios, config.confidence, config.seed),
        statistics.minimum_detectable_effect(outcomes, config.confidence),
    )


# ---- Verdict ----------------------------------------------------------------------------------------------------


def verdict(judged: Judged, prompts: int, identical: float) -> Finding:
    """One sentence by the first judge. It claims a direction only where the interval leaves 50 % outside."""
    rate = judged.win_rate.interval
    on = f"{prompts} held-out {'prompt' if prompts == 1 else 'prompts'} (judge: {judged.description})"
    preference = "this preference" if judged.made_the_labels else "what this judge prefers"
    if rate.low > 0.5:
        return Finding(
            "info",
            "learnt_preference",
            f"The aligned policy learnt {preference}: it wins {percent(rate)} of comparisons on {on}.",
        )
    if rate.high < 0.5:
        return Finding(
            "fail",
            "moved_away",
            f"The aligned policy moved away from {preference}: it wins only {percent(rate)} of comparisons on {on}.",
        )
    effect = judged.minimum_detectable_effect
    if identical == 1:
        limit = "both policies give the very same answers."
    elif not math.isfinite(effect) or effect == 0:
        limit = "too little varies here to say what this comparison could have detected."
    else:
        limit = f"this comparison could have detected {100 * effect:.1f} points."
    return Finding(
        "warn", "no_detectable_change", f"No detectable change: {percent(rate)} of comparisons won on {on}; {limit}"
    )


def not_the_labeller(judged: Judged, labels: Labels) -> str:
    return (
        f"the judge ({judged.description}) did not make the labels ({labels.who}): its win rate says what it prefers, "
        "and not whether the labellers' preference was learnt"
    )


def warnings(
    judges: dict[str, Judged], before: dict[str, float], after: dict[str, float], prompts: int
) -> list[Finding]:
    """The prices that a won comparison may have had, and reasons to trust it less."""
    found = []
    ratio = after["length_tokens"] / before["length_tokens"]
    if not 0.67 <= ratio <= 1.5:
        found.append(
            Finding(
                "warn",
                "longer" if ratio > 1 else "shorter",
                f"answers are {ratio:.2f} times as long as the SFT policy's ({after['length_tokens']:.0f} tokens, "
                f"{before['length_tokens']:.0f} before): look at the win rate at equal length",
            )
        )
    if after["eos_rate"] < before["eos_rate"] - 0.1:
        found.append(
            Finding(
                "warn",
                "stops_less",
                f"{after['eos_rate']:.0%} of answers end by themselves, {before['eos_rate']:.0%} before",
            )
        )
    if after["distinct_2"] < 0.8 * before["distinct_2"]:
        found.append(
            Finding(
                "warn",
                "less_varied",
                f"answers grew alike: {after['distinct_2']:.0%} of word pairs are distinct, "
                f"{before['distinct_2']:.0%} before",
            )
        )
    found += _disagreement(list(judges.values()))
    if prompts < FEW_PROMPTS:
        found.append(
            Finding(
                "warn", "few_prompts", f"{prompts} held-out prompts: below {FEW_PROMPTS} take every interval as a guess"
            )
        )
    return found


def _disagreement(judges: list[Judged]) -> list[Finding]:
    """Judges on either side of 50 %, unless that may be chance for both."""
    found = []
    for i, one in enumerate(judges):
        for other in judges[i + 1 :]:
            a, b = one.win_rate.interval, other.win_rate.interval
            if (a.value - 0.5) * (b.value - 0.5) < 0 and (a.excludes(0.5) or b.excludes(0.5)):
                message = f"judges disagree on the direction: {one.name} {percent(a)}, {other.name} {percent(b)}"
                found.append(Finding("warn", "judges_disagree", message))
    return found


def percent(interval: statistics.Interval) -> str:
    """`68.0 % [62.3, 73.5]`."""
    return f"{100 * interval.value:.1f} % [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def sample_row(answers: Answers, judges: dict[str, Judged], i: int) -> dict[str, Any]:
    """One prompt with everything that was said and how it was judged."""
    row = answers.rows[i]

    def side(candidates: list[Candidate], scores: dict[str, list[float]]) -> list[dict[str, Any]]:
        return [
            {
                "text": candidate.text,
                "finished": candidate.finished,
                "num_tokens": len(candidate.token_ids),
                "logp": candidate.logp,
                "scores": {name: values[k] for name, values in scores.items()},
            }
            for k, candidate in enumerate(candidates)
        ]

    return {
        "prompt_id": row.prompt_id,
        "prompt": [message.model_dump() for message in row.prompt],
        "category": row.category,
        "reference": side(answers.reference[i], {name: judged.reference[i] for name, judged in judges.items()}),
        "aligned": side(answers.aligned[i], {name: judged.aligned[i] for name, judged in judges.items()}),
        "win_share": {name: float(judged.outcomes[i].mean()) for name, judged in judges.items()},
    }

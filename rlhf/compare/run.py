"""Comparison: did alignment change the answers in the wanted direction, and by more than chance?

Reads   candidates/candidates.jsonl (the SFT policy's answers to held-out prompts), sft/, align/, and reward/ where a
        reward model judges; other runs' align/ where they are named.
Writes  compare/: samples.jsonl (every prompt, all policies' answers, every judge's scores), report.json, report.html,
        manifest.json.
Source  all pairs of answers, intervals over prompts: `trueup.statistics.win_rates`; length control: Dubois et al. 2024,
        https://arxiv.org/abs/2404.04475; best-of-n: Nakano et al. 2021, https://arxiv.org/abs/2112.09332.

All policies are sampled with the same settings and the same random numbers, so an unchanged policy answers alike and
the verdict on it is "no detectable change", not a coin toss. The verdict speaks of a preference that was learnt, never
of better answers: a judge knows its preference and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rlhf.compare import answers, checkpoints, judges, regressions, verdict
from rlhf.compare.answers import ALIGNED, BEST, SFT, Answers, ComparedCompletions
from rlhf.compare.config import CompareConfig
from rlhf.compare.inputs import (
    find_training_stages,
    open_others,
    read_labels,
    read_reference,
    read_report_cards,
    unlike_trained,
)
from rlhf.compare.judges import JUDGES, Judge, JudgeResult, LabelOrigins, ScoringJudge
from rlhf.compare.report import write_report
from rlhf.compare.schema import (
    Checkpoint,
    CheckResult,
    ComparedCompletion,
    ComparedPair,
    CompareReport,
    CompletionKL,
    LastRound,
    PoliciesCompared,
    PolicyMeasures,
    PromptComparison,
    Strength,
)
from rlhf.compare.verdict import percent
from trueup import runs
from trueup.artifacts.reports import ComparedPolicy, Estimate, LabelSources, Rate
from trueup.console import say
from trueup.data.records import CandidateSet, read_jsonl, write_rows
from trueup.models.chat import Encoded
from trueup.models.loading import SavedPolicy, read_tokenizer
from trueup.models.placement import place
from trueup.models.policies import aligned
from trueup.models.sampling import Decoding, forget_unfinished
from trueup.runs import FinishedStage, StageRun
from trueup.statistics import intervals, win_rates
from trueup.statistics.bradley_terry import ELO, bradley_terry

BASE = "base"


def run(config: CompareConfig) -> Path:
    stage = runs.begin(config)
    parents = {parent.stage: parent for parent in stage.parents}
    others = open_others(config, parents["sft"])

    # 1. Inputs -------------------------------------------------------------------------------------------------------
    rows, decoding = read_reference(parents[config.sampled], parents["sft"], config.split)
    training_stages = [stage for run_dir in config.run_dirs for stage in find_training_stages(run_dir)]
    rows = unlike_trained(rows, training_stages, stage, config.split)
    tokenizer = read_tokenizer(parents["sft"].dir / "model", config.model)
    check_prompts = regressions.read_checks(config.checks, config.seed, tokenizer)
    say(f"{'prompts':<12} {len(rows)} held out, never trained on, {len(rows[0].candidates)} answers of each policy")
    say(f"{'decoding':<12} {', '.join(f'{key} {value}' for key, value in decoding.facts.items())}")

    # 2. Every policy's answers ---------------------------------------------------------------------------------------
    policies = saved_policies(config, parents, others)
    comparison = sample_all(policies, rows, decoding, stage)
    likeliest = sample_likeliest(policies, rows, decoding, stage) if config.greedy else None
    checks = regressions.check_policies(check_prompts, config, policies, training_stages, stage)
    for path in config.rubric_files:
        stage.add_input(path, 0)
    steps = checkpoints.sample_steps(policies, parents["align"], comparison, decoding, config, stage.dir)

    # 3. Judges -------------------------------------------------------------------------------------------------------
    labels = read_labels(config.run_dir)
    if config.why_these_judges:
        say(f"{'judges':<12} {', '.join(config.judges)}: {config.why_these_judges}")
    bench = [JUDGES[name](config, labels) for name in config.judges]
    comparison = add_best_of_n(comparison, bench)
    results = judge_all(bench, comparison, config)

    # 4. What else changed --------------------------------------------------------------------------------------------
    change = measure_change(parents["sft"], policies, comparison, steps, bench, config)
    measures = describe_all(comparison, change, config.confidence, config.seed)
    kl, identical = change.kl[ALIGNED], comparison.share_identical()
    say(f"{'KL':<12} {kl.value:.2f} nats per sequence; {identical:.0%} of answers are the same, token by token")

    # 5. Verdict ------------------------------------------------------------------------------------------------------
    floors = noise_floors(bench, results, config.confidence, config.seed)
    decision = decide(stage, results, floors, comparison, measures, kl, checks, labels)

    # 6. Save ---------------------------------------------------------------------------------------------------------
    write_rows(stage.dir / "samples.jsonl", (sample_row(comparison, results, i) for i in range(len(rows))))
    stage.write_report(
        CompareReport(
            policies=name_policies(parents, others, config.other_runs),
            prompts=len(rows),
            samples_per_prompt=len(rows[0].candidates),
            confidence=config.confidence,
            decoding=decoding,
            sources=labels.by_source,
            judges={name: by.report() for name, by in results.items()},
            noise_floor={name: judges.rate_of(floor) for name, floor in floors.items()},
            policies_compared=all_pairs(comparison, results, measures, config.confidence, config.seed),
            greedy=judge_likeliest(bench, rows, likeliest, config.confidence, config.seed) if likeliest else None,
            identical_completions=identical,
            checks=checks,
            last_round=beside_last_round(stage, results.get(decision.judge or "")),
            verdict=decision.report(stage.verdict.status),
            kl_nats=CompletionKL(**dict(kl.estimate()), samples_per_prompt=1),
            kl_nats_per_token=change.kl_per_token.estimate(),
            kl_budget=config.kl_budget,
            checkpoints=change.path,
            chosen_by_budget=checkpoints.within_budget(change.path, _path_judge(bench), config.kl_budget),
        )
    )
    stage.facts.update(place(config.model).facts)
    write_report(config.run_dir, stage)
    forget_unfinished(stage.dir)
    return stage.finish()


# ---- Answers ----------------------------------------------------------------------------------------------------


def saved_policies(
    config: CompareConfig, parents: dict[str, FinishedStage], others: dict[str, FinishedStage]
) -> dict[str, SavedPolicy]:
    """Every policy that is compared, by its name."""
    base = {BASE: SavedPolicy(None)} if config.base else {}
    aligned_policies = {name: aligned(align) for name, align in ((ALIGNED, parents["align"]), *others.items())}
    return {**base, SFT: SavedPolicy(parents["sft"].dir / "model"), **aligned_policies}


def sample_all(
    policies: dict[str, SavedPolicy], rows: list[CandidateSet], decoding: Decoding, stage: StageRun
) -> ComparedCompletions:
    """The answers of every policy. Those of the SFT policy are sampled already: they are the candidates of `rows`."""
    num_samples = len(rows[0].candidates)
    by_policy = {
        name: [row.candidates for row in rows]
        if name == SFT
        else sample(name, policy, rows, decoding, num_samples, stage)
        for name, policy in policies.items()
    }
    return ComparedCompletions(rows, by_policy)


def sample(
    name: str, policy: SavedPolicy, rows: Sequence[CandidateSet], decoding: Decoding, num_samples: int, stage: StageRun
) -> Answers:
    say(f"{'sampling':<12} {name}: {len(rows)} prompts, {num_samples} {'answer' if num_samples == 1 else 'answers'}")
    assert isinstance(stage.config, CompareConfig)
    return answers.sample_policy(name, policy, rows, decoding, num_samples, stage.config, stage.dir)


def sample_likeliest(
    policies: dict[str, SavedPolicy], rows: Sequence[CandidateSet], decoding: Decoding, stage: StageRun
) -> dict[str, Answers]:
    """The answer of the SFT and of the aligned policy to each prompt that takes the likeliest token every time."""
    greedy = replace(decoding, temperature=1.0, top_k=1, top_p=1.0)
    return {name: sample(f"{name}-greedy", policies[name], rows, greedy, 1, stage) for name in (SFT, ALIGNED)}


def add_best_of_n(comparison: ComparedCompletions, bench: Sequence[Judge]) -> ComparedCompletions:
    """Add the best of each prompt's SFT answers by the reward model, if one judges: alignment should match them."""
    by = next((judge for judge in bench if judge.name == "reward_model"), None)
    reference = comparison.by_policy[SFT]
    if not isinstance(by, ScoringJudge) or len(reference[0]) < 3:
        return comparison
    best = answers.best_of_others(reference, by.score(comparison.rows, reference))
    return ComparedCompletions(comparison.rows, {**comparison.by_policy, BEST: best})


# ---- Figures ----------------------------------------------------------------------------------------------------


def judge_all(bench: Sequence[Judge], comparison: ComparedCompletions, config: CompareConfig) -> dict[str, JudgeResult]:
    """{judge: what it says}, each told on the screen as it is known."""
    results: dict[str, JudgeResult] = {}
    for by in bench:
        results[by.name] = one = judges.judge(by, comparison, config)
        equal_length = percent(one.length_controlled.interval)
        say(f"{by.name:<19} wins {percent(one.win_rate.interval)}; at equal length {equal_length}")
    return results


def noise_floors(
    bench: Sequence[Judge], results: dict[str, JudgeResult], confidence: float, seed: int
) -> dict[str, win_rates.WinRate]:
    """The SFT policy against itself: the first half of its answers to each prompt against the second, by each judge."""
    floors = {}
    for by in bench:
        if isinstance(by, ScoringJudge) and len((scores := np.array(results[by.name].scores[SFT]))[0]) > 1:
            floors[by.name] = win_rates.noise_floor(scores, confidence, seed)
    return floors


def all_pairs(
    comparison: ComparedCompletions,
    results: dict[str, JudgeResult],
    measures: dict[str, PolicyMeasures],
    confidence: float,
    seed: int,
) -> PoliciesCompared:
    """Every two policies by every judge that scores, and the strengths that follow, in log-odds against SFT."""
    pairs: list[ComparedPair] = []
    strengths, notes = {}, {}
    for name, by_judge in results.items():
        if not by_judge.scores:
            continue
        tables = {
            (a, b): answers.outcome_tables(a, b, by_judge.scores[a], by_judge.scores[b]) for a, b in comparison.pairs
        }
        for (a, b), outcomes in tables.items():
            rate = win_rates.win_rate(outcomes, confidence, seed)
            pairs.append(ComparedPair(a=a, b=b, judge=name, win_rate=judges.rate_of(rate)))
        fit = bradley_terry(tables, SFT, confidence, seed)
        strengths[name] = {
            policy: Strength(**dict(one.estimate()), elo=ELO * one.value) for policy, one in fit.of.items()
        }
        if fit.note:
            notes[name] = fit.note
    return PoliciesCompared(
        policies=list(comparison.by_policy),
        best_of=len(comparison.rows[0].candidates) - 1 if BEST in comparison.by_policy else None,
        pairs=pairs,
        strengths=strengths,
        notes=notes,
        measures=measures,
    )


def judge_likeliest(
    bench: Sequence[Judge], rows: Sequence[CandidateSet], likeliest: dict[str, Answers], confidence: float, seed: int
) -> dict[str, Rate]:
    """Win rates of the aligned policy's likeliest answers."""
    rates = {}
    for by in bench:
        if isinstance(by, ScoringJudge):
            every = {name: by.score(rows, completions) for name, completions in likeliest.items()}
            scores = answers.on_common_prompts(every)
            rates[by.name] = judges.rate_of(judges.compare_scores(SFT, ALIGNED, scores, confidence, seed))
    return rates


def _path_judge(bench: Sequence[Judge]) -> str:
    """The judge that chooses a step: the reward model where it judges, as in training; else the first that scores."""
    names = [by.name for by in bench if isinstance(by, ScoringJudge)]
    return "reward_model" if "reward_model" in names else next(iter(names), "")


@dataclass(frozen=True)
class Change:
    """How far the policies moved from the SFT policy, and what they forgot."""

    kl: dict[str, intervals.Interval]
    """Nats per completion, by sampled policy; the SFT policy is not among them."""
    kl_per_token: intervals.Interval
    """KL of the aligned policy, in nats per token."""
    path: list[Checkpoint]
    heldout_loss: dict[str, float | None]
    """Nats per token of held-out demonstrations, by sampled policy."""


def measure_change(
    sft: FinishedStage,
    policies: dict[str, SavedPolicy],
    comparison: ComparedCompletions,
    steps: Sequence[checkpoints.KeptStep],
    bench: Sequence[Judge],
    config: CompareConfig,
) -> Change:
    """KL to the SFT policy by one answer per prompt, the path of the alignment, and the loss on demonstrations.

    Two models are in memory at once here: the SFT policy, and the one that is measured.
    """
    reference = policies[SFT].load(config.model)
    heldout = sft.dir / "heldout.jsonl"
    demonstrations = [Encoded(**row) for _, row in read_jsonl(heldout)] if heldout.exists() else []
    loss = {SFT: regressions.heldout_loss(reference, demonstrations)}
    kls: dict[SavedPolicy, list[list[float]]] = {}  # in nats, of each token of the first answer to each prompt
    for name in policies:
        if name != SFT:
            policy = policies[name].load(config.model)
            kls[policies[name]] = answers.token_kls(policy, reference, comparison.rows, comparison.by_policy[name])
            loss[name] = regressions.heldout_loss(policy, demonstrations)
            del policy
    for step in steps:
        if step.policy == policies[SFT]:
            kls[step.policy] = [[0.0] * len(row[0].token_ids) for row in step.answers]
        elif step.policy not in kls:
            kls[step.policy] = answers.token_kls(
                step.policy.load(config.model), reference, comparison.rows, step.answers
            )
    confidence, seed = config.confidence, config.seed
    aligned = kls[policies[ALIGNED]]
    return Change(
        {name: answers.kl_per_sequence(kls[policies[name]], confidence, seed) for name in policies if name != SFT},
        answers.kl_per_token(aligned, confidence, seed),
        checkpoints.measure(steps, [kls[step.policy] for step in steps], comparison, bench, config),
        loss,
    )


def describe_all(
    comparison: ComparedCompletions, change: Change, confidence: float, seed: int
) -> dict[str, PolicyMeasures]:
    """{policy: what its answers are like}, of every policy.

    Best of n gives one answer in several places, so nothing is said of its variety; it has no loss of its own, and its
    KL is reckoned.
    """
    measures = {}
    for name, completions in comparison.by_policy.items():
        figures = answers.describe(completions)
        if name == BEST:
            bound = Estimate(value=answers.kl_of_best(len(completions[0]) - 1), ci_low=None, ci_high=None, n=0)
            unknown = {"distinct_2": None, "self_similarity": None, "heldout_loss": None}
            measures[name] = PolicyMeasures(**{**figures, **unknown, "kl_nats": bound})
        else:
            measures[name] = PolicyMeasures(
                **figures,
                self_similarity=answers.self_similarity(completions, confidence, seed).estimate(),
                heldout_loss=change.heldout_loss[name],
                kl_nats=change.kl[name].estimate() if name in change.kl else None,
            )
    return measures


# ---- Verdict ----------------------------------------------------------------------------------------------------


def decide(
    stage: StageRun,
    results: dict[str, JudgeResult],
    floors: dict[str, win_rates.WinRate],
    comparison: ComparedCompletions,
    measures: dict[str, PolicyMeasures],
    kl: intervals.Interval,
    checks: dict[str, CheckResult],
    labels: LabelOrigins,
) -> verdict.Decision:
    """What the figures say, with what a win cost and why to trust it less; all of it becomes findings of the stage."""
    config, prompts, before, after = stage.config, len(comparison.rows), measures[SFT], measures[ALIGNED]
    assert isinstance(config, CompareConfig)
    prices = verdict.find_prices(before, after, kl, config.kl_budget, checks)
    cards = read_report_cards(config.run_dir, config.judges)
    floor_rates = {name: floor.interval for name, floor in floors.items()}
    standings = {name: verdict.standing(one, cards.get(name, ())) for name, one in results.items()}
    lengths = before.length_tokens, after.length_tokens
    decision = verdict.decide(results, standings, floor_rates, prompts, comparison.share_identical(), lengths, prices)
    stage.findings += [decision.finding, *(decision.prices or prices)]
    stage.findings += verdict.reasons_for_doubt(decision, results, cards, floor_rates, before, after, prompts, labels)
    return decision


def beside_last_round(stage: StageRun, decided: JudgeResult | None) -> LastRound | None:
    """This round beside the last one, which also becomes a finding; None in the first round, and where no judge decided
    that scores answers, or where no label was added."""
    config = stage.config
    assert isinstance(config, CompareConfig)
    label = runs.find_stage(config.run_dir, "label")
    if config.round == 1 or label is None or decided is None or not decided.scores:
        return None
    labels = label.report(LabelSources)
    if labels.by_round is None or config.round not in labels.by_round:
        return None
    figures, finding = verdict.last_round(
        decided, config.round, labels.by_round, labels.seconds, config.confidence, config.seed
    )
    stage.findings.append(finding)
    return figures


# ---- The report -------------------------------------------------------------------------------------------------


def name_policies(
    parents: dict[str, FinishedStage], others: dict[str, FinishedStage], run_dirs: dict[str, Path]
) -> dict[str, ComparedPolicy]:
    """Which stage made each policy, by the hash of its manifest."""
    align = parents["align"]
    return {
        SFT: name_policy(parents["sft"]),
        ALIGNED: name_policy(align, algorithm=align.manifest.identity.get("algorithm")),
        **{name: name_policy(other, run=str(run_dirs[name])) for name, other in others.items()},
    }


def name_policy(stage: FinishedStage, algorithm: str | None = None, run: str | None = None) -> ComparedPolicy:
    return ComparedPolicy(stage=stage.stage, manifest_sha256=stage.sha256, algorithm=algorithm, run=run)


def sample_row(comparison: ComparedCompletions, results: dict[str, JudgeResult], i: int) -> PromptComparison:
    """One prompt with everything that was said and how it was judged."""
    row = comparison.rows[i]

    def side(name: str) -> list[ComparedCompletion]:
        return [
            ComparedCompletion(
                text=candidate.text,
                finished=candidate.finished,
                num_tokens=candidate.num_tokens,
                reasoning=candidate.reasoning,
                logp=candidate.logp,
                scores={
                    by: score
                    for by, by_judge in results.items()
                    if by_judge.scores and not math.isnan(score := by_judge.scores[name][i][k])
                },
            )
            for k, candidate in enumerate(comparison.by_policy[name][i])
        ]

    return PromptComparison(
        prompt_id=row.prompt_id,
        prompt=row.prompt,
        category=row.category,
        sft=side(SFT),
        aligned=side(ALIGNED),
        others={name: side(name) for name in comparison.by_policy if name not in (SFT, ALIGNED)},
        win_share={name: by_judge.win_share(i) for name, by_judge in results.items()},
    )

"""Reward model: a scalar score of an answer, learnt from pairs of which one answer was preferred.

Reads   labels/preferences.jsonl, ties.jsonl and ideals.jsonl, and sft/model, from which it starts with a fresh head;
        or the model in `base`.
Writes  reward/: model/ (one output, adapter merged), adapter/ (relative to what it starts from), report.json,
        report.html, scores.jsonl, mistakes.jsonl, metrics.jsonl, manifest.json; with `score_candidates` also
        candidate_scores.jsonl; with `split.judge_fraction` also judge/, a second reward model from other prompts, which
        only judges the comparison.
Source  Bradley-Terry loss, Ouyang et al. 2022, https://arxiv.org/abs/2203.02155, eq. 1, with margins and ties
        (reward/loss.py); head initialised as in Stiennon et al. 2020, https://arxiv.org/abs/2009.01325; trained by
        trl.RewardTrainer.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from reward import start
from reward.card.evaluate import ScoredPairs, mistakes, report_card
from reward.card.page import write_report
from reward.card.stress import stress
from reward.comparisons import Contrast, Encoded, LabelRow
from reward.config import HEAD_OF_ITS_OWN, RewardConfig
from reward.ensemble import add_heads
from reward.probe import ProbeScores, probe_pairs
from reward.report import Learnt, PairScore, RewardReport, SecondReportCard, StartChoice
from reward.trainer import build_trainer
from trueup import runs
from trueup.console import progress, say
from trueup.data.records import CandidateScores, CandidateSet, Dropped, Preference, read_rows, write_rows
from trueup.errors import ConfigError, DataError
from trueup.launching import processes
from trueup.models import loading
from trueup.models.heads import set_ensemble
from trueup.models.scoring import Reading, candidate_scores, score_readings_by_heads, score_sets_by_heads
from trueup.models.templates.ends import choice_of
from trueup.runs import Finding, FinishedStage, StageRun, checkpoints
from trueup.training import adapters, loop
from trueup.training.annotators import resolve_smoothing
from trueup.training.merging import merged
from trueup.training.pairs import Pairs, encode_pairs, read_pairs

JUDGE = "judge"
"""Folder of the second reward model."""
SECOND = "the second reward model: "
"""Beginning of the findings on it."""


def run(config: RewardConfig) -> Path:
    stage = runs.begin(config)
    parents = {parent.stage: parent for parent in stage.parents}

    # 1. Inputs -------------------------------------------------------------------------------------------------------
    pairs = read_pairs(parents["label"], config)
    stage.leave_out_near(pairs.near_duplicates, "labelled prompts")
    config = resolve_smoothing(config, parents["label"])
    ties, judge_ties = ([], []) if config.ties == "leave_out" else (pairs.ties, pairs.judge_ties)
    say(f"{'pairs':<12} {len(pairs.train)} to train on, {len(pairs.heldout)} held out, split by prompt")
    stage.trained_on(pair.prompt for pair in [*pairs.train, *ties, *pairs.ideals] if config.learning_rate)

    # 2. Train --------------------------------------------------------------------------------------------------------
    fitted = fit(config, stage, parents.get("sft"), pairs.train, ties, pairs.ideals, pairs)
    model = fitted.model

    # 3. Evaluate on held-out pairs -----------------------------------------------------------------------------------
    heldout = score_pairs(model, fitted.heldout)
    card = report_card(fitted.train, heldout, stage, pairs.labelled, fitted.probe, stress(model, heldout.pairs))

    # 4. Save ---------------------------------------------------------------------------------------------------------
    write_rows(
        stage.dir / "scores.jsonl",
        (
            PairScore(label_id=pair.label_id, prompt_id=pair.prompt_id, chosen=chosen, rejected=rejected)
            for pair, chosen, rejected in zip(heldout.pairs, heldout.chosen, heldout.rejected, strict=True)
        ),
    )
    wrong = mistakes(heldout)
    write_rows(stage.dir / "mistakes.jsonl", wrong)
    fitted.fold()
    loading.save(model, stage.dir / "model")
    stage.facts.update(model.placement.facts, chat_template=choice_of(model.tokenizer))
    if "sample" in parents:  # behind the saved model, which must not be lost with what others sampled
        candidates = read_rows(parents["sample"].dir / "candidates.jsonl", CandidateSet)
        write_rows(stage.dir / "candidate_scores.jsonl", score_candidates(model, candidates, stage))

    # 5. The judge: a second reward model, from prompts that train nothing else ----------------------------------------
    judge_card = None
    if pairs.judge:
        say(f"{'judge':<12} a second reward model, from {len(pairs.judge)} pairs that train nothing else")
        # It has its own folder and facts; the findings on both models are the stage's.
        own, shared = stage.dir / JUDGE, stage.home / JUDGE
        aside = replace(stage, dir=own, shared=shared, facts={}, openings=(), left_out=[], findings=[])
        aside.dir.mkdir(exist_ok=True)
        aside.trained_on(pair.prompt for pair in [*pairs.judge, *judge_ties, *pairs.judge_ideals])
        judge = fit(config, aside, parents.get("sft"), pairs.judge, judge_ties, pairs.judge_ideals, pairs, SECOND)
        heldout = score_pairs(judge.model, judge.heldout)
        probes, whose = stress(judge.model, heldout.pairs), SECOND
        second = report_card(judge.train, heldout, aside, pairs.labelled, judge.probe, probes, whose)
        before = len(aside.findings)
        judge.fold()
        findings = [*second.findings, *aside.findings[before:]]
        stage.findings += map(of_the_second, aside.findings)
        loading.save(judge.model, aside.dir / "model")
        judge_card = SecondReportCard(
            **dict(second) | {"findings": findings},
            learnt=judge.learnt,
            start=judge.start,
            merge=aside.facts.get("merge"),
        )
        processes.wait()
        for checkpoint in checkpoints(aside.dir):  # empty but in the first of several processes
            shutil.rmtree(checkpoint)
        (aside.dir / start.BEST).unlink(missing_ok=True)
    report = RewardReport(**dict(card), learnt=fitted.learnt, start=fitted.start, judge=judge_card)
    stage.write_report(report)
    write_report(stage, report, wrong)
    (stage.dir / start.BEST).unlink(missing_ok=True)
    return stage.finish()


def of_the_second(finding: Finding) -> Finding:
    """A finding on the second reward model for the stage's verdict. Its failure fails nothing that the first one does:
    nobody is paid by it, and the stages that would ask it read its own card."""
    if finding.level != "fail":
        return finding
    message = f"{finding.message}. It judges no comparison and chooses no step"
    return Finding("warn", "second_reward_model_failed", message)


class Fitted(NamedTuple):
    model: loading.Loaded
    train: list[Preference]
    """The training pairs that fit."""
    heldout: list[Encoded]
    """The held-out pairs that fit, with their tokens."""
    probe: ProbeScores | None
    """The probe's scores of the held-out pairs that fit; None where nothing is trained."""
    learnt: Learnt | None
    """What it learnt from; None where nothing is trained."""
    start: StartChoice | None
    """How training compares with the probe that it started from; None where it did not start from one."""
    fold: Callable[[], None]
    """Folds the adapter into the weights. Call it after scoring: until then the model scores exactly as trained."""


def fit(
    config: RewardConfig,
    stage: StageRun,
    sft: FinishedStage | None,
    train: list[Preference],
    ties: list[Preference],
    ideals: list[Preference],
    pairs: Pairs,
    whose: str = "",
) -> Fitted:
    """A reward model, from the SFT policy with a fresh head or from a base of its own.

    whose  what its findings begin with
    """
    torch.manual_seed(config.seed)  # for the head's random weights
    model, is_fresh = load_start(config, sft)
    if config.start == "probe" and not is_fresh:
        raise ConfigError("reward.start", [HEAD_OF_ITS_OWN])
    dropped, heldout_dropped = Dropped(), Dropped()
    limit, rule = config.max_length, pairs.on_bad_rows
    train, rows = encode_pairs(train, model.tokenizer, limit, dropped, stage, rule, with_reasoning=False)
    ties, tied_rows = encode_pairs(ties, model.tokenizer, limit, dropped, stage, rule, with_reasoning=False)
    ideals, ideal_rows = encode_pairs(ideals, model.tokenizer, limit, dropped, stage, rule, with_reasoning=False)
    heldout, heldout_rows = encode_pairs(
        pairs.heldout, model.tokenizer, limit, heldout_dropped, stage, rule, with_reasoning=False
    )
    examined = list(zip(heldout, heldout_rows, strict=True))
    if not rows:
        raise DataError(f"no pair is left to train on within reward.max_length, {limit} tokens (left out: {dropped})")
    if dropped.counts or heldout_dropped.counts:
        stage.find("warn", "dropped", f"pairs not trained on: {dropped}; held out and not evaluated: {heldout_dropped}")
    if not config.learning_rate:
        say(f"{'model':<12} used as it is: reward.learning_rate is 0")
        model.model.eval()
        return Fitted(model, train, examined, None, None, None, lambda: None)
    strict = list(zip(train, rows, strict=True))
    known = start.KnownPairs.read(model, strict, config.seed)
    probe = probe_pairs(model, known.features, known.prompts, heldout_rows, config.seed)
    strict += zip(ideals, ideal_rows, strict=True)
    encoded = start.TrainingPairs(strict, list(zip(ties, tied_rows, strict=True)), pairs.weight_of)
    if config.start == "probe":

        def again() -> loading.Loaded:
            return load_start(config, sft)[0]

        training = start.train_from_probe(config, stage, model, again, known, encoded, whose)
    else:
        training = start.train(config, stage, model, encoded)
    trainer = training.trainer
    adapters.save_adapter(trainer.model, stage.dir / adapters.ADAPTER)
    model.model = adapters.under_adapter(trainer.model).eval()
    if config.ensemble > 1:
        add_heads(model, encoded.strict[: len(rows)], known, config.ensemble, config.seed)

    def fold() -> None:
        model.model = merged(trainer.model, stage, [row.prompt_ids + row.chosen_ids for row in rows])
        loop.require_sound(model.model, "reward, merging the adapter", every=True)

    return Fitted(model, train, examined, probe, training.learnt, training.choice, fold)


def load_start(config: RewardConfig, sft: FinishedStage | None) -> tuple[loading.Loaded, bool]:
    """The model before its training, and whether its head is fresh. A fresh one has small random weights."""
    if config.base:
        model, is_fresh = loading.load_scorer(config.base, config.headless, config.full_finetuning)
        model = loading.with_pad_token(model)
        if not is_fresh:
            if config.learning_rate:
                set_ensemble(model.model, None)  # they belong to the head as it came
            return model, False
    else:
        assert sft is not None  # it is a parent of every reward model without a base of its own
        model = loading.new_reward_model(sft.dir / "model", config.model, master_weights=config.full_finetuning)
        say(f"{'model':<12} from the SFT policy, {model.placement.reason}")
    init_head(model)
    return model, True


def score_pairs(model: loading.Loaded, pairs: Sequence[Encoded]) -> ScoredPairs:
    """The pairs with the scores of their chosen and of their rejected answers."""
    sides = ([row.chosen_ids for _, row in pairs], [row.rejected_ids for _, row in pairs])
    prompts = [tuple(row.prompt_ids) for _, row in pairs]
    readings = [Reading(prompt, tuple(ids)) for side in sides for prompt, ids in zip(prompts, side, strict=True)]
    scores = score_readings_by_heads(model, readings)
    return ScoredPairs.by_heads([pair for pair, _ in pairs], scores[: len(pairs)], scores[len(pairs) :])


def score_candidates(model: loading.Loaded, rows: Sequence[CandidateSet], stage: StageRun) -> Iterator[CandidateScores]:
    """The score of every sampled answer. One that the reward model cannot read has none, which is a finding."""
    scores = score_sets_by_heads(model, [row.prompt for row in rows], [row.candidates for row in rows], progress)
    flat = [score for row in scores for score in row]
    if unread := flat.count(None):
        message = f"{unread} of {len(flat)} sampled answers have no score: the reward model cannot read them"
        stage.find("info", "answers_without_score", message)
    for row, of_row in zip(rows, scores, strict=True):
        yield candidate_scores(row.prompt_id, of_row)


def init_head(model: loading.Loaded) -> None:
    """Make first scores small, so that the loss starts at ln 2.

    Stiennon et al. 2020 (p. 11) draw the weights from N(0, 1/(d + 1)), for d inputs of unit scale. Hidden states of our
    models are several times as large; with a hundredth of that standard deviation the loss of all starts at ln 2.
    """
    head = model.model.score
    torch.nn.init.normal_(head.weight, std=0.01 / math.sqrt(head.in_features + 1))


def trial(config: RewardConfig, stage: StageRun, model: loading.Loaded) -> Any:
    """The trainer over one label that stands for all (`trueup.training.trial`)."""
    return build_trainer(config, stage, model, [LabelRow([[0, 0, 0], [0, 0]], [Contrast((0,), (1,))])])

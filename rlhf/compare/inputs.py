"""What a comparison reads, and the proof that it may be read: policies, prompts, labels and report cards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from rlhf.compare.config import CompareConfig
from rlhf.compare.judges import LabelOrigins
from trueup import runs
from trueup.artifacts.reports import LabelSources, RewardCards
from trueup.config import HOLDS_OUT, SplitConfig
from trueup.data.duplicates.rows import NEAR_TRAINED, QUESTIONS
from trueup.data.duplicates.training import like_trained
from trueup.data.records import CandidateSet, read_rows
from trueup.data.split import is_heldout, opening_id
from trueup.errors import DataError, RunError
from trueup.models.config import ModelConfig
from trueup.models.loading import read_tokenizer
from trueup.models.policies import start_name
from trueup.models.sampling import Decoding
from trueup.runs import Finding, FinishedStage, StageRun
from trueup.stages import command


def open_others(config: CompareConfig, sft: FinishedStage) -> dict[str, FinishedStage]:
    """The alignments of other runs. They must hold out the same prompts, and speak in the same tokens."""
    others = {name: runs.open_stage(run_dir, "align") for name, run_dir in config.other_runs.items()}
    ours = vocabulary(sft.dir / "model", config.model) if others else {}
    for name, align in others.items():
        if problem := why_apart(config, align, ours):
            raise RunError(f"compare.others.{name}: {problem}")
    return others


def why_apart(config: CompareConfig, align: FinishedStage, ours: dict[str, int] | None) -> str | None:
    """Why the alignment of another run cannot be compared with this one's, or None.

    ours  vocabulary of this run; None where it is not known yet
    """
    run_dir, split = align.dir.parent, align.manifest.identity.get("split")
    if not isinstance(split, dict) or any(split.get(key) != getattr(config.split, key) for key in HOLDS_OUT):
        return (
            f"{run_dir} was split differently ({split}), so it may have trained on prompts that are held out here: "
            "give both campaigns the same split"
        )
    if ours is not None and vocabulary(align.dir / "model", config.model) != ours:
        return (
            f"{run_dir} has another tokenizer than this run: no model here can read its answers, so compare "
            "alignments of one base model"
        )
    return None


def vocabulary(directory: Path, config: ModelConfig) -> dict[str, int]:
    """{token: id}."""
    return dict(read_tokenizer(directory, config).get_vocab())


def find_training_stages(run_dir: Path) -> list[FinishedStage]:
    """The finished stages of a run that train, with those that its aligned policy started from."""
    stages = [stage for name in ("sft", "reward", "align") if (stage := runs.find_stage(run_dir, name))]
    align = runs.find_stage(run_dir, "align")
    while align and start_name(align) != "sft" and (align := runs.find_stage(align.run_dir, start_name(align))):
        stages.append(align)
    return stages


def read_reference(
    sample: FinishedStage, sft: FinishedStage, split: SplitConfig
) -> tuple[list[CandidateSet], Decoding]:
    """The SFT policy's answers to held-out prompts, and the settings that they were sampled with."""
    path, again = sample.dir / "candidates.jsonl", command(sample.run_dir, sample.stage)
    rows = [row for row in read_rows(path, CandidateSet) if row.split == "heldout"]
    if not rows:
        raise DataError(
            f"{path}: no held-out prompt among them, so nothing can be compared: give more prompts (sample.prompts, "
            "sample.max_prompts) or raise split.heldout_fraction"
        )
    for row in rows:
        if not is_heldout(row.prompt, split):
            raise RunError(
                f"{path}: prompt {row.prompt_id} is not held out by this campaign's split: run `{again}` again"
            )
        if row.sampler.get("policy_sha256") != sft.sha256:
            raise RunError(f"{path}: answers of another SFT policy than {sft.dir}: run `{again}` again")
        if row.sampler != rows[0].sampler or len(row.candidates) != len(rows[0].candidates):
            raise RunError(f"{path}: its prompts were sampled with different settings: run `{again}` again")
    sampler = rows[0].sampler
    decoding = Decoding(**{field.name: sampler[field.name] for field in fields(Decoding) if field.name in sampler})
    return rows, decoding


def prove_disjoint(rows: Sequence[CandidateSet], stages: Sequence[FinishedStage]) -> None:
    """No prompt of the comparison is among those that a stage says it trained on."""
    for stage in stages:
        _require(stage, stage.dir / runs.TRAINED)
        again, trained_prompts = command(stage.run_dir, stage.stage), stage.trained_prompts
        for row in rows:
            if opening_id(row.prompt) in trained_prompts:
                what = "it" if len(row.prompt) == 1 else "a dialogue that begins like it"
                raise RunError(
                    f"prompt {row.prompt_id} ({row.prompt[-1].content[:60]!r}) is to be compared on, and {stage.dir} "
                    f"was trained on {what}: run `{again}` again with this campaign's split"
                )


def unlike_trained(
    rows: list[CandidateSet], stages: Sequence[FinishedStage], stage: StageRun, split: SplitConfig
) -> list[CandidateSet]:
    """The prompts that are not nearly the same as one that a stage trained on; none of them is one, or a RunError.

    The others are no fault of a stage, which cannot know of prompts in files that it does not read. They are listed.
    """
    prove_disjoint(rows, stages)
    if split.near_duplicates == "keep":
        return rows
    near = like_trained([row.prompt for row in rows], [row.where for row in rows], trained_questions(stages))
    stage.leave_out_near(list(near.values()), "held-out prompts")
    if len(near) == len(rows):
        raise DataError(f"every held-out prompt is {NEAR_TRAINED}, so nothing can be compared: give other prompts")
    return [row for i, row in enumerate(rows) if i not in near]


def trained_questions(stages: Sequence[FinishedStage]) -> list[Path]:
    """The files that say what these stages trained on."""
    for stage in stages:
        _require(stage, stage.dir / QUESTIONS)
    return [stage.dir / QUESTIONS for stage in stages]


def _require(stage: FinishedStage, path: Path) -> None:
    if not path.exists():
        raise RunError(
            f"{path} is not there, so nothing proves that {stage.stage} trained on none of these prompts: run "
            f"`{command(stage.run_dir, stage.stage)}` again"
        )


def read_labels(run_dir: Path) -> LabelOrigins:
    """What made the labels. They stand in the run directory, since the aligned policy was trained on them."""
    label = runs.find_stage(run_dir, "label")
    if label is None:
        return LabelOrigins({}, None)
    by_source = label.report(LabelSources).by_source
    identity = label.manifest.identity
    return LabelOrigins(
        by_source,
        rubric=identity.get("rubric") if "simulated" in by_source else None,
        rubric_version=label.manifest.fingerprint.get("rubric"),
        judge_model=identity.get("judge_model") if "judge" in by_source else None,
    )


def read_report_cards(run_dir: Path, judges: Sequence[str]) -> dict[str, list[Finding]]:
    """What the reward stage found of each reward model on the bench, on pairs that neither was trained on."""
    reward = runs.find_stage(run_dir, "reward")
    card = reward.report(RewardCards) if reward else None
    cards = {"reward_model": card, "second_reward_model": card.judge if card else None}
    unknown = Finding("warn", "no_report_card", "it has no report card, so nothing is known of its accuracy")
    return {name: card.findings if card else [unknown] for name, card in cards.items() if name in judges}

"""The start of a reward model whose head is a probe, and the choice between it and what training makes of it.

Some training prompts are kept out of training and of the probe that it starts from. On them a step of training must
beat the start, each at its best temperature. If none does, the reward model is the probe of all training pairs.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from reward.comparisons import Encoded, counts, label_rows
from reward.config import RewardConfig
from reward.hidden import Features, depths, read_features
from reward.probe import FOLDS, Probe, fit_probe, folds_of_prompts, pairs_to_read, prompt_weights
from reward.report import Learnt, StartChoice
from reward.trainer import build_trainer, take_threshold
from trueup.console import say
from trueup.data.split import opening_id
from trueup.files import PARTIAL, replacing
from trueup.launching import processes
from trueup.models import heads
from trueup.models.loading import Loaded
from trueup.models.scoring import Reading, score_readings
from trueup.runs import METRICS, StageRun
from trueup.statistics.calibration import fit_temperature
from trueup.training import loop
from trueup.training.adapters import under_adapter
from trueup.training.loop import KEPT_LOSS

LEAST_OPENINGS = 2 * FOLDS
"""Fewest training prompts of which a fold can decide anything."""
LOOKS = 4
"""How often a training is compared with its start, evenly over its steps."""
PATIENCE = 2
"""Looks in a row without a smaller loss that end a training."""
BEST = f"trained.best{PARTIAL}"
"""File of the trained weights with the smallest loss so far. It is there until the stage ends, as checkpoints are: a
stage that is resumed behind its training needs it."""


class TrainingPairs(NamedTuple):
    """Pairs with their tokens."""

    strict: list[Encoded]
    ties: list[Encoded]
    weight_of: dict[str, float]
    """The weight of each annotator's labels; empty: all count alike."""

    def without(self, openings: Collection[str]) -> TrainingPairs:
        """Those of other dialogues than the ones that begin so."""
        strict, ties = (
            [pair for pair in pairs if opening_id(pair[0].prompt) not in openings] for pairs in (self.strict, self.ties)
        )
        return TrainingPairs(strict, ties, self.weight_of)


def kept_openings(openings: Sequence[str], seed: int) -> set[str]:
    """The openings of dialogues that are kept for the choice: one fold of them; none where there are too few."""
    if len(set(openings)) < LEAST_OPENINGS:
        return set()
    folds = folds_of_prompts(openings, seed)
    return {opening for opening, fold in zip(openings, folds, strict=True) if fold == 0}


def places_to_start_at(model: Loaded, features: Features) -> Features:
    """The features at places from which a reward model can be saved and read again."""
    whole = model.model.config.get_text_config().num_hidden_layers
    counts = {place.layers for place in features}
    lost = {count for count in counts if count < whole and not heads.can_be_cut(model.model, count)}
    if lost:
        say(f"{'start':<12} all layers stay: {type(model.model).__name__} builds no model of its first ones")
    return {place: each for place, each in features.items() if place.layers not in lost}


def start_at(model: Loaded, probe: Probe) -> None:
    """Let the model score as the probe. The layers behind it go, and its head is the probe's direction."""
    heads.cut_trunk(model.model, probe.place.layers)
    if probe.place.pooling != "last token":
        setattr(model.model.config, heads.POOLING, probe.place.pooling)
    with torch.no_grad():
        weight = model.model.score.weight
        weight.copy_(torch.as_tensor(probe.direction, dtype=weight.dtype)[None])


class Kept(NamedTuple):
    """Pairs that decide whether training helped."""

    readings: list[Reading]
    """The chosen and the rejected answer of each pair, one after the other."""
    openings: list[str]
    weights: list[float]
    """How much each pair counts by who labelled it, as in training."""

    @classmethod
    def of(cls, pairs: Sequence[Encoded], weight_of: Mapping[str, float]) -> Kept:
        readings = [
            Reading(tuple(row.prompt_ids), tuple(ids)) for _, row in pairs for ids in (row.chosen_ids, row.rejected_ids)
        ]
        weights = [weight_of.get(pair.annotator, 1.0) for pair, _ in pairs]
        return cls(readings, [opening_id(pair.prompt) for pair, _ in pairs], weights)

    def loss(self, model: Loaded) -> float:
        """The loss of these pairs at the temperature that suits them best. All processes get the first one's."""
        was_training = model.model.training
        model.model.eval()
        scores = np.array(score_readings(model, self.readings)).reshape(-1, 2)
        model.model.train(was_training)
        margins = scores[:, 0] - scores[:, 1]
        return processes.agreed(lambda: loss_at_best_temperature(margins, self.openings, self.weights))


def loss_at_best_temperature(
    margins: np.ndarray, openings: Sequence[str], annotator_weights: Sequence[float] | None = None
) -> float:
    """The mean of -log sigmoid(margin / T) over pairs (N,) at the best T. All openings weigh the same, times the weight
    of the annotator, unless no pair has any.

    A temperature changes no order of two answers, so it must not decide which of two models is better."""
    weights = prompt_weights(openings)
    if annotator_weights is not None and any(annotator_weights):
        weights = weights * np.array(annotator_weights)
        weights = weights / weights.sum()
    temperature = fit_temperature(margins.tolist(), weights.tolist())
    return float(weights @ np.logaddexp(0, -margins / temperature))


class KeepBest(TrainerCallback):
    """Keeps the trained weights with the smallest loss on the kept pairs, unless the start's is smaller. Training ends
    early if it makes that loss no smaller."""

    def __init__(self, stage: StageRun, model: Loaded, kept: Kept, loss_at_start: float):
        """model  the one that is trained"""
        self.stage, self.model, self.kept = stage, model, kept
        self.file = stage.home / BEST
        self.losses = {0: loss_at_start}
        """The loss of each step that was looked at."""
        if not stage.resumed and not processes.rank():
            self.file.unlink(missing_ok=True)
            stage.log({"step": 0, KEPT_LOSS: loss_at_start})

    @property
    def best_step(self) -> int:
        return min(self.losses, key=lambda step: (self.losses[step], step))

    @property
    def smallest(self) -> float | None:
        """The smallest loss behind the start; None if training ended before there was any."""
        return min((loss for step, loss in self.losses.items() if step), default=None)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """Read what an interrupted training measured."""
        for row in loop.read_metrics(self.stage.dir / METRICS):
            if KEPT_LOSS in row and row["step"] <= state.global_step:
                self.losses[int(row["step"])] = row[KEPT_LOSS]
        if self.file.is_file():  # perhaps of a step behind the last checkpoint, which no row tells of any more
            with safe_open(self.file, "pt") as file:
                self.losses[int(file.metadata()["step"])] = float(file.metadata()["loss"])

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        step = state.global_step
        if step not in {max(1, round(state.max_steps * look / LOOKS)) for look in range(1, LOOKS + 1)}:
            return
        self.losses[step] = loss = self.kept.loss(self.model)
        if args.should_save:
            self.stage.log({"step": step, KEPT_LOSS: loss})
            if self.best_step == step:
                with replacing(self.file) as partial:  # a torn file could never be read again
                    save_file(trained_weights(self.model.model), partial, {"step": str(step), "loss": repr(loss)})
        if sum(self.best_step < other <= step for other in self.losses) >= PATIENCE:
            control.should_training_stop = True

    def restore(self) -> None:
        """Give the model the weights of the best step. Those of the start are not kept: they are made again."""
        processes.wait()  # one of them writes the file
        if self.best_step:
            with safe_open(self.file, "pt") as file, torch.no_grad():
                for name, weight in trained_weights(self.model.model).items():
                    weight.copy_(file.get_tensor(name))
        processes.wait()  # and removes it


def trained_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}


class KnownPairs(NamedTuple):
    """Training pairs whose hidden states were read."""

    features: Features
    prompts: list[str]
    openings: list[str]

    @classmethod
    def read(cls, model: Loaded, pairs: Sequence[Encoded], seed: int) -> KnownPairs:
        """The pairs as `model` reads them, which is not changed; those of some prompts where there are very many."""
        prompts = [pair.prompt_id for pair, _ in pairs]
        read = pairs_to_read(prompts, seed)
        say(f"{'probe':<12} reads {len(read)} of {len(pairs)} training pairs")
        features = read_features(model, [pairs[i][1] for i in read], depths(model.model))
        openings = [opening_id(pairs[i][0].prompt) for i in read]
        return cls(features, [prompts[i] for i in read], openings)

    def without(self, openings: Collection[str]) -> KnownPairs:
        rest = [i for i, opening in enumerate(self.openings) if opening not in openings]
        features = {place: each[rest] for place, each in self.features.items()}
        return KnownPairs(features, [self.prompts[i] for i in rest], [self.openings[i] for i in rest])


class Training(NamedTuple):
    """A training that came to its end."""

    trainer: Any
    """It has not trained where training was undone."""
    learnt: Learnt
    choice: StartChoice | None
    """How it compares with the probe that it started from; None where it did not start from one."""


def train(
    config: RewardConfig, stage: StageRun, model: Loaded, pairs: TrainingPairs, looks: KeepBest | None = None
) -> Training:
    """Train on labels, and keep the best step of those that `looks` looks at, or else the last."""
    labels = label_rows(config, *pairs)
    trainer = build_trainer(config, stage, model, labels)
    model.model = under_adapter(trainer.model)
    if looks:
        trainer.add_callback(looks)
    loop.train(trainer, stage)
    if looks:
        trainer.accelerator.wait_for_everyone()
        looks.restore()
    learnt = Learnt(
        **counts(labels),
        label_smoothing=float(config.label_smoothing) or None,
        annotator_weights=pairs.weight_of or None,
        tie_threshold=take_threshold(trainer.model),
    )
    return Training(trainer, learnt, None)


def train_from_probe(
    config: RewardConfig,
    stage: StageRun,
    model: Loaded,
    load: Callable[[], Loaded],
    known: KnownPairs,
    pairs: TrainingPairs,
    whose: str = "",
) -> Training:
    """Train a model whose head starts as a probe, unless that makes it worse on prompts kept for this.

    load   gives the model before its training once more. One at a time is in memory
    known  of the strict pairs
    whose  what a finding begins with
    """
    kept = kept_openings(known.openings, config.seed)
    known = known._replace(features=places_to_start_at(model, known.features))
    choice = StartChoice(reason="", kept_prompts=len(kept), loss_at_start=None, loss_trained=None, step=0)
    if kept:
        rest = known.without(kept)
        probe = processes.agreed(lambda: fit_probe(rest.features, rest.prompts, config.seed))
        say(f"{'start':<12} the head is a probe: {probe.reason}")
        start_at(model, probe)
        exam = Kept.of(
            [pair for pair in pairs.strict if opening_id(pair[0].prompt) in kept and not pair[0].ideal], pairs.weight_of
        )
        loss_at_start = exam.loss(model)
        looks = KeepBest(stage, model, exam, loss_at_start)
        training = train(config, stage, model, pairs.without(kept), looks)
        choice = StartChoice(
            reason=probe.reason,
            kept_prompts=len(kept),
            loss_at_start=loss_at_start,
            loss_trained=looks.smallest,
            step=looks.best_step,
        )
        if choice.step:
            say(f"{'choice':<12} {in_words(choice)}")
            return training._replace(choice=choice)
        known = known._replace(features={probe.place: known.features[probe.place]})
        del training, model.model
        gc.collect()  # a trainer is part of circles
        model.model = load().model
    probe = processes.agreed(lambda: fit_probe(known.features, known.prompts, config.seed))
    start_at(model, probe)
    choice = choice.model_copy(update={"reason": choice.reason or probe.reason})
    say(f"{'choice':<12} {in_words(choice)}")
    stage.find("info", "training_undone", whose + in_words(choice))
    labels = label_rows(config, [pair for pair in pairs.strict if not pair[0].ideal], [])
    trainer = build_trainer(config, stage, model, labels)  # for the adapter, which changes nothing
    learnt = Learnt(**counts(labels) | {"comparisons": len(known.prompts), "graded": 0}, tie_threshold=None)
    return Training(trainer, learnt, choice)


def in_words(choice: StartChoice) -> str:
    """What was decided, and by which figures."""
    if choice.loss_at_start is None or choice.loss_trained is None:  # no prompt was kept
        return (
            f"fewer than {LEAST_OPENINGS} training prompts cannot tell whether training helps, so nothing was trained: "
            f"the reward model is the probe of all training pairs, {STRICT_ALONE}"
        )
    figures = (
        f"loss on {choice.kept_prompts} training prompts kept for it, each at its best temperature: "
        f"{choice.loss_trained:.3f} trained, {choice.loss_at_start:.3f} as the probe it started from"
    )
    if choice.step:
        return f"{figures}: the model of step {choice.step} is kept"
    return f"{figures}: training is undone, and the reward model is the probe of all training pairs, {STRICT_ALONE}"


STRICT_ALONE = "which learns from strict pairs alone: no ties, grades, ideal answers, smoothing or weights count in it"

"""Configuration of the algorithms that learn from labelled answers, and the table of DPO's losses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, NamedTuple

from pydantic import Field, model_validator

from rlhf.align.config.shared import AlignConfig
from trueup.data.pairs import PairRule
from trueup.training.config import BelievedConfig, PreferenceConfig, Smoothing


class Loss(NamedTuple):
    beta: float
    """What `beta: auto` stands for."""
    reason: str
    at_reference: Callable[[float], float]
    """The loss of any pair at a given beta, as long as the policy is the reference. The first step is checked by it."""
    smooths: bool = False
    """Whether it takes `label_smoothing`."""


def _ln_2(beta: float) -> float:
    return math.log(2)


def _one(beta: float) -> float:
    return 1.0


LOSSES = {
    "sigmoid": Loss(0.1, "the usual one of sigmoid", _ln_2, smooths=True),
    "hinge": Loss(0.1, "the usual one of hinge", _one),
    "ipo": Loss(
        1.0,
        "this loss takes means per token, and 1 / (2 beta) = 0.5 nats a token is the gap that it aims at",
        lambda beta: (0.5 / beta) ** 2,
    ),
    "robust": Loss(0.1, "the usual one of robust", _ln_2, smooths=True),
    "sigmoid_norm": Loss(
        5.0, "this loss takes means per token; 5 is the beta of OLMo 2, which was aligned by it", _ln_2
    ),
    "apo_zero": Loss(0.1, "as for sigmoid: this loss takes sums over tokens", _one),
    "apo_down": Loss(0.1, "as for sigmoid: this loss takes sums over tokens", _one),
}
"""The losses of DPO, by the names of trl.DPOTrainer, which computes them. `ipo` is that of Azar et al. 2023,
https://arxiv.org/abs/2310.12036, eq. 17, over means; `sigmoid_norm` that of the card of
https://huggingface.co/allenai/OLMo-2-1124-7B-DPO-Preview. The others take sums: Rafailov et al. 2023, appendix B;
`apo_zero` and `apo_down` are of D'Oosterlinck et al. 2024, https://arxiv.org/abs/2408.06266, eq. 7 and 8."""
IMITATION = "sft"
"""The loss of supervised fine-tuning on the chosen answers, nats per token, which may stand beside those losses."""

LOGISTIC = ("sigmoid", "sigmoid_norm")
"""Losses that are minus the logarithm of a preference's probability: in them a tie and an offset have a meaning."""

if TYPE_CHECKING:
    LossName = str
    MixedName = str
else:
    LossName = Literal[tuple(LOSSES)]  # a new entry of the table is a new value of the key
    MixedName = Literal[(*LOSSES, IMITATION)]


class LabelledConfig(PreferenceConfig, AlignConfig):
    """What DPO, SimPO and KTO share: the policy learns from labelled answers."""

    check_rows: ClassVar[str | None] = "rlhf.align.check:check_pairs"

    learning_rate: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"  # type: ignore[assignment]
    """Learning rate at its peak. `auto` follows from the number of steps. 0 trains nothing: it makes a control, whose
    comparison finds no change."""
    num_train_epochs: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"  # type: ignore[assignment]
    """Passes over the pairs or answers. `auto` follows from their number."""
    keep_steps: int = Field(3, ge=0)
    """Adapters that are kept during training, evenly spaced. The comparison shows reward and KL of each."""

    @model_validator(mode="after")
    def _keeps_adapters(self) -> LabelledConfig:
        if self.full_finetuning and self.keep_steps and "keep_steps" in self.model_fields_set:
            raise ValueError("keep_steps: keeps adapters, and full_finetuning trains none: leave one of them out")
        return self

    def parents(self) -> tuple[str, ...]:
        return (self.start_stage, "label")


class DPOConfig(LabelledConfig, BelievedConfig):
    """Direct preference optimisation (Rafailov et al. 2023, https://arxiv.org/abs/2305.18290)."""

    run: ClassVar[str] = "rlhf.align.preferences.dpo:run"
    trial: ClassVar[str] = "rlhf.align.preferences.dpo:trial"

    algorithm: Literal["dpo"] = "dpo"
    """The algorithm that aligns the policy."""
    beta: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """Strength of the pull to the SFT policy: a higher beta stays nearer to it. `auto` takes what suits `loss_type`."""
    loss_type: LossName | Annotated[dict[MixedName, Annotated[float, Field(gt=0)]], Field(min_length=1)] = "sigmoid"
    """Loss over a pair, by the names of TRL (docs/dpo.md), or several with their weights, such as `{sigmoid: 1, sft:
    0.2}`, where `sft` imitates the chosen answers."""
    label_smoothing: Smoothing = 0.0
    """Share of labels that are assumed to be wrong. With `sigmoid` this is cDPO (https://ericmitchell.ai/cdpo.pdf),
    with `robust` its unbiased form (https://arxiv.org/abs/2403.00409); the other losses take none. `measured` takes it
    from how often annotators disagree."""
    grades: Literal["leave_out", "offset", "weight"] = "leave_out"
    """How it counts that one answer is slightly better, better or much better. `offset`: the margin of a pair must
    exceed 0, ln 2 or ln 3, in units of beta times nats (https://arxiv.org/abs/2402.10571). `weight`: a pair counts 1/2,
    1 or 3/2. Pairs that nobody graded have no offset, and count 1. `leave_out`: grades count for nothing."""
    pair_weight: Literal["equal", "per_label"] = "equal"
    """Weight of a pair. `equal`: every pair counts alike, so that a ranking of 4 answers counts as much as six
    labels of pairs. `per_label`: all pairs of one label count 1 together (Ouyang et al. 2022, eq. 1)."""
    ties: Literal["leave_out", "half", "davidson"] = "leave_out"
    """How answers count that somebody found equally good. `half`: as half a preference for each. `davidson`: as an
    outcome of its own, by Davidson's model (https://arxiv.org/abs/2409.17431). `leave_out`: not at all."""

    @model_validator(mode="after")
    def _complete(self) -> DPOConfig:
        names = self.pair_losses
        if not names:
            raise ValueError("loss_type: sft alone learns no preference: name a loss over pairs beside it")
        if self.label_smoothing and (deaf := [name for name in names if not LOSSES[name].smooths]):
            raise ValueError(
                f"label_smoothing: has no meaning in loss_type {deaf[0]}; use sigmoid (cDPO) or robust, or 0"
            )
        if self.label_smoothing and len(names) > 1:
            raise ValueError("label_smoothing: sigmoid and robust take it in two ways: leave one of them out, or 0")
        if self.beta == "auto" and len({LOSSES[name].beta for name in names}) > 1:
            wanted = ", ".join(f"{LOSSES[name].beta:g} for {name}" for name in names)
            raise ValueError(f"beta: auto has no one value for these losses ({wanted}): give a number")
        if IMITATION in self.losses and self.trainer_args.get("use_weighting"):
            raise ValueError("trainer_args.use_weighting: weighs pairs, and sft in loss_type is no loss over pairs")
        self._check_weighing()
        return self

    def _check_weighing(self) -> None:
        """The loss that obeys `grades`, `ties` and the weights is ours, not TRL's; it has fewer variants."""
        key = next((k for k in ("ties", "grades") if getattr(self, k) in ("half", "davidson", "offset")), None)
        if key and (others := [name for name in self.pair_losses if name not in LOGISTIC]):
            raise ValueError(
                f"{key}: {getattr(self, key)} has no meaning in loss_type {others[0]}; use {' or '.join(LOGISTIC)}"
            )
        if self.label_smoothing and (self.ties == "davidson" or self.grades == "offset"):
            key = "ties" if self.ties == "davidson" else "grades"
            raise ValueError(f"{key}: {getattr(self, key)} goes with no label_smoothing: set one of them otherwise")
        if self.ties == "davidson" and self.grades == "offset":
            raise ValueError("grades: offset has no meaning with ties: davidson; use weight, or ties: half")
        for name in ("f_divergence_type", "use_weighting"):
            if self.weighs and name in self.trainer_args:
                raise ValueError(
                    f"trainer_args.{name}: does nothing beside grades, pair_weight, annotator_weights or ties: "
                    "leave it out"
                )

    @property
    def weighs(self) -> bool:
        """Whether pairs do not all count alike."""
        weights = (self.pair_weight, self.annotator_weights)
        return (self.grades, self.ties, *weights) != ("leave_out", "leave_out", "equal", "equal")

    @property
    def losses(self) -> dict[str, float]:
        """Weight of each loss."""
        return {self.loss_type: 1.0} if isinstance(self.loss_type, str) else self.loss_type

    @property
    def pair_losses(self) -> list[str]:
        """The losses that learn a preference."""
        return [name for name in self.losses if name != IMITATION]


Weight = Annotated[float, Field(gt=0)] | Literal["auto"]


class KTOConfig(LabelledConfig):
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024, https://arxiv.org/abs/2402.01306), by trl.KTOTrainer."""

    run: ClassVar[str] = "rlhf.align.preferences.kto:run"
    trial: ClassVar[str] = "rlhf.align.preferences.kto:trial"
    least_rows: ClassVar[int] = 2

    algorithm: Literal["kto"] = "kto"
    """The algorithm that aligns the policy."""
    pairs: PairRule = "extremes"
    """Pairs of a ranking whose answers are trained on: `extremes` (best, worst), `all`, by which an answer in the
    middle is desirable and undesirable at once, `nested` (each answer at most once). Of a ranking whose answers are
    all bad, each answer is trained on."""
    beta: float = Field(0.1, gt=0)
    """Strength of the pull to the SFT policy: a higher beta stays nearer to it."""
    desirable_weight: Weight = "auto"
    """Weight of an answer that was chosen. `auto` follows from how many answers there are of each kind, so that all
    desirable ones weigh between 1 and 4/3 times as much as all undesirable ones."""
    undesirable_weight: Weight = "auto"
    """Weight of an answer that was rejected, or that is tied with another because both are bad. `auto` as above."""
    train_batch_size: int = Field(8, ge=2)
    """Answers per optimiser step, over all devices. The KL is estimated over those that are computed at once, on all
    devices together (`per_device_train_batch_size`)."""

    @model_validator(mode="after")
    def _reads_several_at_once(self) -> KTOConfig:
        if self.per_device_train_batch_size == 1:
            raise ValueError("per_device_train_batch_size: KTO estimates the KL over two or more answers at once")
        return self


class SimPOConfig(LabelledConfig):
    """Simple preference optimisation (Meng et al. 2024, https://arxiv.org/abs/2405.14734), by TRL's experimental
    CPOTrainer: the loss reads log-probabilities per token, and no reference."""

    run: ClassVar[str] = "rlhf.align.preferences.simpo:run"
    trial: ClassVar[str] = "rlhf.align.preferences.simpo:trial"

    algorithm: Literal["simpo"] = "simpo"
    """The algorithm that aligns the policy."""
    beta: float = Field(2.0, gt=0)
    """What a nat per token counts in the loss: a higher beta stops sooner where the better answer is far ahead."""
    target_margin: float = Field(1.0, ge=0)
    """How far the better answer is to be ahead, in beta times nats per token. The paper takes about half of beta."""

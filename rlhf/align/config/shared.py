"""Configuration that every algorithm of alignment shares."""

from __future__ import annotations

from typing import ClassVar, Literal

from trueup.training.config import TrainConfig


class AlignConfig(TrainConfig):
    """What every algorithm shares."""

    stage: ClassVar[str] = "align"
    report: ClassVar[str] = "rlhf.align.schema:AlignReport"
    further_keys: ClassVar[frozenset[str]] = frozenset({"start"})

    start: Literal["sft", "last_round"] = "sft"
    """The policy that training starts from, which is also the reference. `sft`: the SFT policy, in every round.
    `last_round`: in a further round the policy that the last one aligned; what other keys say of the SFT policy then
    holds for that one. The comparison is with the SFT policy all the same."""

    @property
    def start_stage(self) -> str:
        """The stage that made this policy: `sft`, or `round-1/align`."""
        return f"round-{self.round - 1}/align" if self.start == "last_round" and self.round > 1 else "sft"

    @property
    def start_title(self) -> str:
        """This policy in a sentence."""
        return "the SFT policy" if self.start_stage == "sft" else f"the policy of round {self.round - 1}"

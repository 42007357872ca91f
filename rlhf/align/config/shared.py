"""Configuration that every algorithm of alignment shares."""

from __future__ import annotations

from typing import ClassVar

from trueup.training.config import TrainConfig


class AlignConfig(TrainConfig):
    """What every algorithm shares."""

    stage: ClassVar[str] = "align"
    report: ClassVar[str] = "rlhf.align.schema:AlignReport"

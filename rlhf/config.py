"""Configuration that alignment and comparison share."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trueup.config import InputPath, Section
from trueup.models.templates.block import LEAST_BUDGET


class CheckConfig(Section):
    """Prompts whose answers a program can verify. They show whether alignment broke what the policy could do."""

    kind: Literal["ifeval", "gsm8k"]
    """Which program verifies the answers."""
    path: InputPath
    """File of the prompts: IFEval's input_data.jsonl, or GSM8K's {question, answer} lines."""
    limit: int | None = Field(None, ge=1)
    """Prompts to use, drawn by the seed. Empty: all."""
    max_new_tokens: int = Field(256, ge=1)
    """Most tokens of an answer in the comparison. Alignment draws its answers with its own `max_new_tokens`."""
    max_thinking_tokens: int = Field(1024, ge=LEAST_BUDGET)
    """Most tokens of the reasoning before it, with `model.thinking`. Alignment has its own `max_thinking_tokens`."""

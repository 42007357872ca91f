"""Configuration of supervised fine-tuning and of sampling from its result."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from trueup.config import DemonstrationsPath, PromptsPath
from trueup.data.row_rules import RowRules
from trueup.models.config import ModelStageConfig
from trueup.provenance.contents import Contents
from trueup.training.config import TrainConfig


class DataSource(RowRules):
    """A file of demonstrations. A bare path is enough if no other key is set."""

    path: DemonstrationsPath
    """`starter`, or a .jsonl, .json or .csv file of demonstrations. Its columns say which format it has
    (docs/formats.md)."""
    max_rows: int | None = Field(None, ge=1)
    """Rows to use, drawn with the stage's seed. Empty: all."""


def _from_path(value: Any) -> Any:
    return {"path": value} if isinstance(value, str | Path) else value


class SFTConfig(TrainConfig):
    """Instruction tuning: maximum likelihood of the assistant's turns only."""

    stage: ClassVar[str] = "sft"
    run: ClassVar[str] = "sft.train:run"
    check: ClassVar[str | None] = "sft.check:check_sft"
    check_rows: ClassVar[str | None] = "sft.check:check_demonstrations"
    report: ClassVar[str] = "sft.report:SFTReport"
    trial: ClassVar[str] = "sft.train:trial"

    data: list[Annotated[DataSource, BeforeValidator(_from_path, json_schema_input_type=DataSource | str)]] = Field(
        min_length=1
    )
    """Files of demonstrations; several are mixed. A bare path is enough if only `path` is set."""
    learning_rate: float = Field(2e-4, gt=0)
    """Learning rate at its peak. The best one for LoRA is about ten times that for full fine-tuning
    (https://thinkingmachines.ai/blog/lora)."""
    num_train_epochs: float = Field(2.0, gt=0)
    """Passes over the demonstrations."""

    def input_paths(self) -> list[Path]:
        return [source.path for source in self.data]

    def contents(self) -> dict[str, Contents | None]:
        return {**self.model.contents(), **super().contents()}


class SampleConfig(RowRules, ModelStageConfig):
    """Candidate answers: K completions of each prompt from the SFT policy."""

    stage: ClassVar[str] = "sample"
    run: ClassVar[str] = "sft.sample:run"
    check: ClassVar[str | None] = "sft.check:check_sample"
    check_rows: ClassVar[str | None] = "sft.check:check_prompts"
    report: ClassVar[str] = "sft.report:SampleReport"

    prompts: PromptsPath
    """`starter`, or a .jsonl, .json or .csv file of prompts."""
    max_prompts: int | None = Field(None, ge=1)
    """Prompts to use, drawn with the stage's seed. Empty: all."""
    only: Literal["heldout"] | None = None
    """Which prompts are answered. `heldout` answers only what the comparison needs: imported labels are about other
    answers than ours. Empty: all prompts."""
    num_candidates: int = Field(4, ge=2, le=64)
    """Answers to each prompt."""
    max_new_tokens: int = Field(256, ge=1)
    """Most tokens of an answer. One that is longer is cut and counted as unfinished."""
    temperature: float = Field(1.0, gt=0)
    """Sampling temperature: below 1 likely tokens become likelier, above 1 the answers vary more."""
    top_k: int = Field(0, ge=0)
    """Number of likeliest tokens to sample among. 0: all."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Probability up to which the likeliest tokens, taken together, are sampled from. 1: all tokens."""
    batch_size: int = Field(64, ge=1)
    """Sequences that are generated together."""
    num_workers: int = Field(1, ge=1)
    """Processes on a CPU, each with its share of the cores and of the prompts."""

    def parents(self) -> tuple[str, ...]:
        return ("sft",)

    def input_paths(self) -> list[Path]:
        return [self.prompts]

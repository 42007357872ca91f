"""Configuration of supervised fine-tuning and of sampling from its result."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from trueup.config import (
    BadRows,
    DemonstrationsPath,
    IgnoredColumns,
    ModelConfig,
    PromptsPath,
    Section,
    SplitConfig,
    StageConfig,
    TrainConfig,
)
from trueup.contents import Contents


class DataSource(Section):
    """A file of demonstrations. Written as a bare path when nothing else needs saying."""

    path: DemonstrationsPath
    """`starter`, or a .jsonl, .json or .csv file; its format is recognised by its columns (docs/formats.md)."""
    max_rows: int | None = Field(None, ge=1)
    """Use so many rows, drawn with the stage's seed. Empty: all."""
    on_bad_rows: BadRows = "refuse"
    """What becomes of a file with rows that cannot be read: `refuse` it with all its problems, or `drop` those rows,
    counted by reason in the manifest and kept in the stage's left_out.jsonl."""
    ignore_columns: IgnoredColumns = Field([])
    """Columns that change nothing of what a row means: they are not read, and no row is refused or dropped for them."""


def _from_path(value: Any) -> Any:
    return {"path": value} if isinstance(value, str | Path) else value


class SFTConfig(TrainConfig):
    """Instruction tuning: maximum likelihood of the assistant's turns, and of nothing else."""

    stage: ClassVar[str] = "sft"
    run: ClassVar[str] = "sft.train:run"
    trial: ClassVar[str] = "sft.train:trial"

    model: ModelConfig
    split: SplitConfig
    data: list[Annotated[DataSource, BeforeValidator(_from_path)]] = Field(min_length=1)
    """Files of demonstrations."""
    learning_rate: float = Field(2e-4, gt=0)
    """Peak. LoRA's best is about ten times that of full fine-tuning (https://thinkingmachines.ai/blog/lora)."""
    num_train_epochs: float = Field(2.0, gt=0)

    def input_paths(self) -> list[Path]:
        return [source.path for source in self.data]

    def contents(self) -> dict[str, Contents | None]:
        return {**self.model.contents(), **super().contents()}


class SampleConfig(StageConfig):
    """Candidate answers: K completions of each prompt from the SFT policy."""

    stage: ClassVar[str] = "sample"
    run: ClassVar[str] = "sft.sample:run"

    model: ModelConfig
    split: SplitConfig
    prompts: PromptsPath
    """`starter`, or a .jsonl, .json or .csv file of prompts."""
    on_bad_rows: BadRows = "refuse"
    """What becomes of a file with rows that cannot be read: `refuse` it with all its problems, or `drop` those rows,
    counted by reason in the manifest and kept in the stage's left_out.jsonl."""
    ignore_columns: IgnoredColumns = Field([])
    """Columns that change nothing of what a row means: they are not read, and no row is refused or dropped for them."""
    max_prompts: int | None = Field(None, ge=1)
    """Use so many prompts, drawn with the stage's seed. Empty: all."""
    only: Literal["heldout"] | None = None
    """`heldout` samples just what the comparison needs: for imported labels, which are not about our samples."""
    num_candidates: int = Field(4, ge=2, le=64)
    """K, answers per prompt."""
    max_new_tokens: int = Field(256, ge=1)
    temperature: float = Field(1.0, gt=0)
    top_k: int = Field(0, ge=0)
    """Sample among the k likeliest tokens; 0: all of them."""
    top_p: float = Field(1.0, gt=0, le=1)
    batch_size: int = Field(64, ge=1)
    """Sequences that are generated together."""
    num_workers: int = Field(1, ge=1)
    """Processes on a CPU, each with its share of the cores and of the prompts."""

    def parents(self) -> tuple[str, ...]:
        return ("sft",)

    def input_paths(self) -> list[Path]:
        return [self.prompts]

"""Configuration of the label stage: who or what says which answer is preferred."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from trueup.config import InputPath, ModelConfig, SplitConfig, StageConfig
from trueup.rubric import RUBRICS
from trueup.runs import STORE, stage_dir

Source = Literal["human", "simulated", "import", "judge", "reward_model"]


class LabelConfig(StageConfig):
    """Preferences over the sampled answers, from one source; others only if they are named."""

    stage: ClassVar[str] = "label"
    run: ClassVar[str] = "ui.label:run"

    model: ModelConfig
    split: SplitConfig
    source: Source = "human"
    """human: the browser; simulated: the named rubric; import: a file; judge: a model behind an HTTP endpoint;
    reward_model: a directory with one."""
    also_use: list[Source] = Field([])
    """Other sources whose labels in the store are exported too. Empty: they never mix."""
    store: str | None = None
    """SQLAlchemy URL of the label store. Empty: SQLite in the run directory."""

    # human
    pairs_per_prompt: int = Field(1, ge=1)
    """Pairs of answers that people are shown for each prompt."""
    labels_wanted: int | None = Field(None, ge=1)
    """Labels after which `trueup run` goes on. Empty: an answer, or a skip, for every pair."""
    guideline: str = "Which answer would you rather have got? If you cannot tell, call it a tie."
    """A line that people read above every pair."""

    # simulated
    rubric: Literal["says-why"] = "says-why"

    # import
    path: InputPath | None = None
    """A preference file in any format of docs/formats.md."""

    # judge
    judge_url: str | None = None
    """Base URL of an OpenAI-compatible endpoint, such as http://127.0.0.1:8000/v1; the key is read from the environment
    variable OPENAI_API_KEY."""
    judge_model: str | None = None

    # reward_model
    reward_model: str | None = None
    """Local directory (or hub id) of a sequence-classification model with one output."""

    @property
    def store_url(self) -> str:
        return self.store or f"sqlite:///{stage_dir(self.run_dir, 'label') / STORE}"

    @model_validator(mode="after")
    def _complete(self) -> LabelConfig:
        needs = {"import": ["path"], "judge": ["judge_url", "judge_model"], "reward_model": ["reward_model"]}
        for key in needs.get(self.source, []):
            if getattr(self, key) is None:
                raise ValueError(f"with source: {self.source}, the key {key} is required")
        if "import" in self.also_use and self.path is None:
            raise ValueError("with also_use: [import], the key path is required")
        return self

    @property
    def sources(self) -> list[Source]:
        """Whose labels are exported: `source` first."""
        return list(dict.fromkeys([self.source, *self.also_use]))

    @property
    def programs(self) -> dict[Source, str]:
        """Sources that are programs, and the annotator's name under which each one's labels are stored."""
        return {
            "simulated": f"rubric:{self.rubric}",
            "judge": f"judge:{self.judge_model}",
            "reward_model": f"reward_model:{self.reward_model}",
        }

    def parents(self) -> tuple[str, ...]:
        return () if self.sources == ["import"] else ("sample",)

    def input_paths(self) -> list[Path]:
        return [self.path] if self.path and "import" in self.sources else []

    def fingerprint(self) -> dict[str, str | None]:
        """The rubric's own text, and what people have put into the store."""
        found: dict[str, str | None] = {}
        if "simulated" in self.sources:
            found["rubric"] = RUBRICS[self.rubric].version
        if "human" in self.sources:
            from ui.store import digest

            found["labels in the store"] = digest(self.store_url)
        return found

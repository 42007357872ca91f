"""Configuration of the compare stage."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, PrivateAttr, model_validator

from rlhf.config import CheckConfig
from trueup.config import EndpointParameters, RunDirectory, SecretWebUrl, Stages
from trueup.data.rubric import RubricName, rubric_files, rubric_version
from trueup.files import Json
from trueup.judging.votes import VOTES, votes_digest
from trueup.models.config import ModelStageConfig
from trueup.provenance.contents import Contents
from trueup.runs import find_stage
from trueup.stages import round_dir
from trueup.training.config import TrainConfig


class CompareConfig(ModelStageConfig):
    """The comparison of the SFT policy with the aligned policy, on held-out prompts.

    The SFT policy's answers are those of the sample stage. The aligned policy is sampled with the same settings and
    seed, so there are no keys for decoding here.
    """

    stage: ClassVar[str] = "compare"
    run: ClassVar[str] = "rlhf.compare.run:run"
    check: ClassVar[str | None] = "rlhf.compare.check:check"
    check_rows: ClassVar[str | None] = "rlhf.compare.check:check_rows"
    report: ClassVar[str] = "rlhf.compare.schema:CompareReport"

    judges: list[Literal["rubric", "reward_model", "second_reward_model", "votes", "endpoint"]] = Field([])
    """Judges that say which of two answers is better. The first that can decide the verdict does; one whose report card
    failed cannot. `second_reward_model` is trained on `split.judge_fraction` of the prompts and nothing else; `votes`
    are people's blind votes (`trueup serve RUN`); `endpoint` is a language model. Empty: the program that made the
    labels, if one did, and then the reward models, which learnt from the labels."""
    rubric: RubricName | None = None
    """Rubric behind the judge `rubric`: `says-why`, or `file.py:name`. Empty: that of the label stage."""
    judge_url: SecretWebUrl | None = None
    """Base URL of an OpenAI-compatible endpoint, for the judge `endpoint`. Its key is read from the environment
    variable OPENAI_API_KEY."""
    judge_model: str | None = None
    """Model that the endpoint is asked for."""
    judge_parameters: EndpointParameters = EndpointParameters()
    """How the endpoint is asked: temperature, limits, any other key of the request."""
    judge_pairs_per_prompt: int = Field(1, ge=1)
    """Pairs of answers to each prompt that the endpoint is asked about, each in both orders."""

    base: bool = False
    """Whether the base model, before SFT or under `model.adapter`, is compared too."""
    others: dict[str, RunDirectory] = Field({})
    """Aligned policies of other runs to compare too: {name: run directory}, such as {ppo: runs/demo-ppo}."""
    greedy: bool = True
    """Whether the likeliest answers are compared too, one for each prompt."""
    step_prompts: int = Field(32, ge=0)
    """Prompts that each kept step of the alignment answers, for the picture of reward against KL. 0: no picture."""
    kl_budget: float | None = Field(None, gt=0)
    """Most nats per sequence that alignment may move from the SFT policy. More is reported as a price, and the picture
    names the step that this budget would choose. Empty: any distance."""
    checks: list[CheckConfig] = Field([])
    """Verifiable prompts that both policies answer greedily."""

    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Confidence level of every interval."""
    batch_size: int = Field(64, ge=1)
    """Sequences that are generated together."""
    num_workers: int = Field(1, ge=1)
    """Processes on a CPU, each with its share of the cores and of the prompts."""

    @model_validator(mode="after")
    def _complete(self) -> CompareConfig:
        if "second_reward_model" in self.judges and not self.split.judge_fraction:
            raise ValueError("judge second_reward_model: needs prompts of its own, split.judge_fraction: 0.3 or so")
        if "endpoint" in self.judges and not (self.judge_url and self.judge_model):
            raise ValueError("judge endpoint: the keys judge_url and judge_model are required")
        if len(set(self.judges)) < len(self.judges):
            raise ValueError(f"judges: each once, found {self.judges}")
        clashes = [name for name in self.others if re.fullmatch(r"base|sft|aligned|best_of_n|round-\d+", name)]
        if clashes:
            raise ValueError(
                f"others: {', '.join(sorted(clashes))} is the name of a policy or round of this run; choose another"
            )
        kinds = [check.kind for check in self.checks]
        if len(set(kinds)) < len(kinds):
            raise ValueError("checks: each kind once")
        return self

    _why_these: str = PrivateAttr("")

    @property
    def why_these_judges(self) -> str:
        """Why the campaign chose these judges; empty where the file names them."""
        return self._why_these

    def completed(self, stages: Mapping[str, Any]) -> Self:
        """With the judge that made the labels, where the file names none, and with the label stage's rubric."""
        label, update = stages["label"], Json()
        program = {"simulated": "rubric", "judge": "endpoint"}.get(label.source)
        if not self.judges:
            second = ["second_reward_model"] if self.split.judge_fraction else []
            update["judges"] = [*([program] if program else []), *second, "reward_model"]
            if program == "endpoint":
                keys = {"judge_url", "judge_model", "judge_parameters"} - self.model_fields_set
                update |= {key: getattr(label, key) for key in keys}
        if "rubric" in update.get("judges", self.judges) and self.rubric is None:
            update["rubric"] = label.rubric
        config = self.model_copy(update=update)
        if not self.judges:
            config._why_these = f"label.source is {label.source}"
        return config

    def conflicts(self, stages: Stages) -> list[str]:
        lines = super().conflicts(stages)
        if self.base and not isinstance(stages["sft"], TrainConfig) and not self.model.adapter:
            lines.append(
                "compare.base: with sft: none the base model is the SFT policy, which is compared anyway: leave it out"
            )
        return lines

    @property
    def needs_reward(self) -> bool:
        return bool({"reward_model", "second_reward_model"} & set(self.judges))

    @property
    def other_runs(self) -> dict[str, Path]:
        """Folders of the other alignments to compare: those that the file names, and the last round's."""
        last_round = {f"round-{self.round - 1}": round_dir(self.run_dir, self.round - 1)} if self.round > 1 else {}
        return {**last_round, **self.others}

    @property
    def run_dirs(self) -> tuple[Path, ...]:
        """The folders of this round and of all others whose stages must have trained on none of the prompts."""
        return (self.run_dir, *self.other_runs.values())

    def parents(self) -> tuple[str, ...]:
        last_round = [f"round-{self.round - 1}/align"] if self.round > 1 else []
        reward = ["reward"] if self.needs_reward else []
        return ("sft", self.sampled, "align", *reward, *last_round)

    @property
    def sampled(self) -> str:
        """The stage with the SFT policy's answers: that of the first round, since later ones answer by other
        policies."""
        return "sample" if self.round == 1 else "round-1/sample"

    def input_paths(self) -> list[Path]:
        return [*(check.path for check in self.checks), *self.rubric_files]

    @property
    def rubric_files(self) -> list[Path]:
        """The file of a rubric of one's own, where it judges."""
        return rubric_files(self.rubric) if "rubric" in self.judges else []

    def contents(self) -> dict[str, Contents | None]:
        return self.model.contents() if self.base else {}

    def fingerprint(self) -> dict[str, str | None]:
        """What the rubric means, people's votes, and the other runs' policies, where they count."""
        versions: dict[str, str | None] = {}
        if "rubric" in self.judges:
            versions["rubric"] = rubric_version(self.rubric)
        if "votes" in self.judges:
            versions["votes"] = votes_digest(self.run_dir / VOTES)
        for name, run_dir in self.other_runs.items():
            align = find_stage(run_dir, "align")
            versions[f"others.{name}"] = align.sha256 if align else None
        return versions

"""Configuration of supervised fine-tuning, of a campaign without it, and of sampling from the policy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, PrivateAttr, model_validator

from trueup.config import DemonstrationsPath, PromptsPath, Stages
from trueup.data.row_rules import RowRules
from trueup.files import Json
from trueup.models.config import ModelStageConfig
from trueup.models.encoding import Fitting, Overlong, TrainOn
from trueup.models.templates.block import LEAST_BUDGET
from trueup.provenance.commits import HubId
from trueup.provenance.contents import Contents
from trueup.provenance.inputs import hub_ids_of
from trueup.training.config import TrainConfig

_LARGE_MASK = 0.25
"""GiB from which the mask of a packed row is told of: it lies beside the model in each step."""


class DataSource(RowRules):
    """A file of demonstrations. A bare path is enough if no other key is set."""

    path: DemonstrationsPath
    """`starter`, or demonstrations: a file (JSON, JSONL, CSV, TSV, Parquet, Arrow, packed or not), a folder of such
    files, a pattern such as `data/*.jsonl`, or a hub data set.
    Their columns say which format they have (docs/formats.md)."""
    weight: float = Field(1.0, gt=0, le=100)
    """How often a pass over the data takes each demonstration of this source that is trained on: 0.5 takes half of
    them, drawn with the seed, 2 takes each twice, and 1.5 half of them twice. It is a factor and no share of the
    mixture, so that adding a source changes no other. Held-out demonstrations are measured once each."""
    max_per_category: int | None = Field(None, ge=1)
    """Most demonstrations of each `category`, drawn with the seed, so that none outweighs the others. Rows without a
    category are all taken. Empty: all."""


def _from_path(value: Any) -> Any:
    return {"path": value} if isinstance(value, str | Path) else value


class SFTConfig(TrainConfig):
    """Instruction tuning: maximum likelihood of the assistant's turns. `sft: none`, or no such section, trains
    nothing: the named model, with `model.adapter` if that is set, is the SFT policy."""

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
    leave_out: list[str] = Field([])
    """Kinds of tasks that are not trained on: categories of the data, or some of `question_answering`,
    `summarisation`, `creative_writing`, `code`, `analysis`, `translation`, `mathematics` and `conversation`, of which a
    row without a category counts as one by the words of its question. The report then has figures of the base model
    and of the SFT policy on demonstrations that nothing trained on, of each kind that was trained on or left out: the
    loss, and how near greedy answers come to the demonstrations' own. What was learnt of some kinds of tasks may help
    others, or not."""
    near_duplicates: Literal["keep", "drop"] = "keep"
    """What happens to demonstrations that nearly repeat an earlier one, in what is asked and in what is answered:
    `drop` leaves them out, counts them and lists them in sft/near_duplicates.jsonl. Of those that resemble each other
    the first stays."""
    contamination: Literal["drop", "keep"] = "drop"
    """What happens to demonstrations of which a turn shares 13 words in a row with a held-out prompt, or with a
    question or an answer of `compare.checks` (docs/formats.md): `drop` leaves them out, `keep` trains on them. Both
    count them and list them in sft/contamination.jsonl."""
    learning_rate: float = Field(2e-4, gt=0)
    """Learning rate at its peak. The best one for LoRA is about ten times that for full fine-tuning
    (https://thinkingmachines.ai/blog/lora)."""
    num_train_epochs: float = Field(2.0, gt=0)
    """Passes over the demonstrations."""
    overlong: Overlong = "drop"
    """What happens to a demonstration longer than `max_length`. `drop` leaves it out whole. `cut` keeps the tokens up
    to there, so that the end of a cut answer is not learnt. `split` makes several dialogues of it that fit, each with
    its system message and whole exchanges, and leaves out an exchange that does not fit by itself."""
    train_on: TrainOn = "assistant"
    """Tokens that carry loss: those of the `assistant`'s turns, or `all`, with prompts and what the template writes."""
    packing: bool = False
    """Whether several demonstrations share a row of up to `max_length` tokens, so that little is padded. Batches then
    count such rows. A model that would let one demonstration see another is refused, by a measurement before it is
    trained."""

    _checked_files: tuple[Path, ...] = PrivateAttr(())

    @property
    def checked_files(self) -> tuple[Path, ...]:
        """The files of the comparison's checks. Another check makes nothing stale: the comparison leaves out what it
        finds among the questions that were trained on."""
        return self._checked_files

    def also_read(self) -> list[Path]:
        return list(self._checked_files)

    def completed(self, stages: Mapping[str, Any]) -> Self:
        """With the checks of the comparison, which no demonstration may have words of."""
        config = self.model_copy()
        config._checked_files = tuple(check.path for check in getattr(stages.get("compare"), "checks", ()))
        return config

    @property
    def mask_note(self) -> str | None:
        """What is said of packed rows that are so long that the mask of their demonstrations takes much memory. It has
        an entry for each two tokens, of a byte with `sdpa`; FlashAttention has none."""
        size = self.max_length**2 / 2**30
        if not self.packing or size < _LARGE_MASK:
            return None
        return (
            f"sft.packing: the mask of a row of {self.max_length} tokens takes {size:.1f} GiB, with eager attention 2 "
            "or 4 times that, and with FlashAttention none; a lower sft.max_length packs about as well, and gives more "
            "steps"
        )

    @property
    def fitting(self) -> Fitting:
        return Fitting(self.max_length, self.overlong, self.train_on)

    def input_paths(self) -> list[Path]:
        return [source.path for source in self.data]

    def contents(self) -> dict[str, Contents | None]:
        return {**self.model.contents(), **super().contents()}

    def hub_ids(self) -> list[HubId]:
        of_rows = {f"sft.data.{n}.path": source.path for n, source in enumerate(self.data)}
        return [*self.model.hub_ids(), *hub_ids_of(of_rows)]

    def conflicts(self, stages: Stages) -> list[str]:
        if not self.model.adapter:
            return []
        return [
            "model.adapter: sft would train an adapter over an adapter. Leave the adapter out; or set sft: none, which "
            "merges it: then `trueup export RUN sft DIR` writes a model that model.name can name"
        ]


class StartConfig(ModelStageConfig):
    """No SFT: the model that the campaign names, with its adapter if it names one, is the SFT policy."""

    stage: ClassVar[str] = "sft"
    run: ClassVar[str] = "sft.start:run"
    check: ClassVar[str | None] = "sft.check:check_start"
    report: ClassVar[str] = "sft.report:StartReport"

    @property
    def remark(self) -> str:
        adapter = " with its adapter" if self.model.adapter else ""
        return f"sft: none: the named model{adapter} is the SFT policy"

    def contents(self) -> dict[str, Contents | None]:
        return self.model.contents()

    def hub_ids(self) -> list[HubId]:
        return self.model.hub_ids()

    def identity(self) -> Json:
        """The identity without the split and the seed, which change nothing here."""
        return {"model": super().identity()["model"], "none": True}

    def conflicts(self, stages: Stages) -> list[str]:
        idle = {
            "new_tokens": "adds tokens whose embeddings SFT trains",
            "load_in_4bit": "quantises the base while SFT trains",
        }
        return [
            f"model.{key}: {does}, and with sft: none nothing is trained there: leave it out"
            for key, does in idle.items()
            if getattr(self.model, key)
        ]


class SampleConfig(RowRules, ModelStageConfig):
    """Candidate answers: K completions of each prompt from the SFT policy; in a further round most are the last round's
    policy's."""

    stage: ClassVar[str] = "sample"
    run: ClassVar[str] = "sft.sample:run"
    check: ClassVar[str | None] = "sft.check:check_sample"
    check_rows: ClassVar[str | None] = "sft.check:check_prompts"
    report: ClassVar[str] = "sft.report:SampleReport"
    further_keys: ClassVar[frozenset[str]] = frozenset({"sft_share", "best_share", "best_of"})

    prompts: PromptsPath | None = None
    """`starter`, or demonstrations or prompts, as for `sft.data`. It may be left out with `label.source: import`: then
    the held-out prompts of the imported file are answered, for the comparison."""
    max_prompts: int | None = Field(None, ge=1)
    """Prompts to use, drawn with the stage's seed. Empty: all."""
    only: Literal["heldout"] | None = None
    """Which prompts are answered. `heldout` answers only what the comparison needs: imported labels are about other
    answers than ours. Empty: all prompts."""
    num_candidates: int = Field(4, ge=2, le=64)
    """Answers to each prompt."""
    max_new_tokens: int = Field(256, ge=1)
    """Most tokens of an answer. One that is longer is cut and counted as unfinished."""
    max_thinking_tokens: int = Field(1024, ge=LEAST_BUDGET)
    """Most tokens of the reasoning before an answer, with `model.thinking`. A longer one is closed by force, and then
    the answer follows, with all of `max_new_tokens`. The comparison samples with the same budget."""
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

    # further rounds
    sft_share: float = Field(0.25, ge=0, lt=1)
    """In a further round, the share of a prompt's answers that the SFT policy gives, rounded down. They are anchors:
    the policy that the last round aligned gives the others."""
    best_share: float = Field(0.25, ge=0, lt=1)
    """In a further round, the share of a prompt's answers, rounded down, that are the best of `best_of` further answers
    by the last round's policy, as its reward model scores them."""
    best_of: int = Field(4, ge=2, le=64)
    """Answers that `best_share` chooses from; as many as it takes, if that is more."""

    _for_people: bool = PrivateAttr(False)

    @model_validator(mode="after")
    def _leaves_some(self) -> SampleConfig:
        if self.sft_share + self.best_share >= 1:
            raise ValueError("sft_share and best_share together leave no answer to the policy of the last round")
        return self

    @property
    def for_people(self) -> bool:
        """Whether people judge the answers, who may do so while others are sampled. It changes the order in which
        prompts are answered, and no answer."""
        return self._for_people

    def in_round(self, number: int) -> Self:
        """With random numbers of its own: the policies of two rounds may be much alike."""
        return super().in_round(number).model_copy(update={"seed": self.seed + number - 1})

    def parents(self) -> tuple[str, ...]:
        before = self.round - 1
        return ("sft", f"round-{before}/align", f"round-{before}/reward") if before else ("sft",)

    def input_paths(self) -> list[Path]:
        return [self.prompts_path]

    def hub_ids(self) -> list[HubId]:
        return [*super().hub_ids(), *hub_ids_of({"sample.prompts": self.prompts})]

    @property
    def most_tokens(self) -> int:
        """Of an answer with its reasoning."""
        return self.max_new_tokens + self.model.thinking_budget(self.max_thinking_tokens)

    @property
    def prompts_path(self) -> Path:
        assert self.prompts is not None, "conflicts() refuses a campaign without prompts"
        return self.prompts

    def completed(self, stages: Mapping[str, Any]) -> Self:
        """With the prompts of the imported preferences, where the file names none, and whether people label."""
        label, update = stages["label"], Json()
        if self.prompts is None and label.sources == ["import"]:
            unset = RowRules.model_fields.keys() - self.model_fields_set
            update = {"prompts": label.path, "only": "heldout"} | {key: getattr(label, key) for key in unset}
        config = self.model_copy(update=update)
        config._for_people = "human" in label.sources
        return config

    def conflicts(self, stages: Stages) -> list[str]:
        lines = [] if self.prompts else ["sample.prompts: is required, unless label.source is import"]
        return lines + super().conflicts(stages)

"""Configuration of the label stage: the sources of labels, and how people label."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from trueup.config import (
    EndpointParameters,
    InputPath,
    PreferencesPath,
    SecretUrl,
    SecretWebUrl,
    from_campaign,
)
from trueup.data.own_code import short_name
from trueup.data.row_rules import RowRules
from trueup.data.rubric import RubricName, rubric_files, rubric_version
from trueup.errors import ConfigError
from trueup.models.config import A_REWARD_MODEL, ModelConfig, ModelName, ModelStageConfig, require_on_hub
from trueup.provenance import contents
from trueup.provenance.commits import HubId
from trueup.provenance.contents import Contents
from trueup.provenance.inputs import hub_ids_of
from trueup.provenance.masking import HIDDEN
from trueup.runs import STORE, stage_dir
from trueup.stages import campaign_dir

if TYPE_CHECKING:
    import sqlalchemy as sa

Source = Literal["human", "simulated", "import", "judge", "reward_model"]


PASSWORD = "TRUEUP_STORE_PASSWORD"


def with_password(store: str) -> sa.URL:
    """The URL of a database with the password from the environment, where it has none of its own or a hidden one."""
    import sqlalchemy as sa

    url = sa.make_url(store)
    if url.password not in (None, HIDDEN) or not url.username:
        return url
    if password := os.environ.get(PASSWORD):
        return url.set(password=password)
    if url.password == HIDDEN:
        raise ConfigError("label.store", [f"{store}: a run does not keep the password: set the variable {PASSWORD}"])
    return url


class LabelConfig(RowRules, ModelStageConfig):
    """Preferences over the sampled answers. They come from one source, and from others only if those are named."""

    stage: ClassVar[str] = "label"
    run: ClassVar[str] = "ui.label.run:run"
    check: ClassVar[str | None] = "ui.label.check:check"
    check_rows: ClassVar[str | None] = "ui.label.check:check_rows"
    verify: ClassVar[str | None] = "ui.labels.proof:check_store"
    report: ClassVar[str] = "ui.sources.report:LabelReport"

    source: Source = "human"
    """Who labels: `human` is people in the browser, `simulated` the rubric, `import` a file of preferences, `judge` a
    language model behind an HTTP endpoint, `reward_model` a reward model of your own."""
    also_use: list[Source] = Field([])
    """Other sources whose labels in the store are used too. Sources that are not named here never mix."""
    store: SecretUrl | None = None
    """SQLAlchemy URL of the label store. The file of sqlite:///labels.sqlite is relative to the campaign file. Empty:
    SQLite in the run directory, for all rounds. Leave the password out: it is read from the environment variable
    TRUEUP_STORE_PASSWORD, which `trueup serve` needs too. A password here, or from `${NAME}`, is stored nowhere
    else."""

    # human: what is asked
    task: Literal["pairs", "ranking"] = "pairs"
    """What people do: `pairs` asks which of two answers is better, `ranking` puts all answers to a prompt in order,
    ties allowed."""
    answers_per_item: int | None = Field(None, ge=3, le=9)
    """Answers to a prompt that are ranked together. Empty: all, at most nine."""
    pairs_per_prompt: int = Field(1, ge=1)
    """Pairs of answers that people are shown for each prompt."""
    labels_per_pair: int = Field(1, ge=1, le=99)
    """Labels that each pair or ranking gets, from as many different people."""
    target_labels: int | None = Field(None, ge=1)
    """Labels of people after which `trueup run` continues, and the prompts (or the pairs) that a program labels. Empty:
    a label, or a skip, for every pair. `labels_per_round`, at the top of the file, says it for each round."""
    scale: Literal["plain", "graded"] = "graded"
    """Scale of a preference: `graded` has seven steps from A much better to B much better, `plain` has A, B and a
    tie."""
    criteria: list[str] = Field([])
    """Criteria that people judge besides the preference, such as [helpful, honest, harmless]."""
    rationale_share: float = Field(0.0, ge=0, le=1)
    """Share of the pairs for which a written reason is required."""
    guideline: str = "Which answer would you rather have got? If you cannot tell, call it a tie."
    """Guideline for people, in Markdown. Its first line stands above every pair, the rest behind the key `g`."""
    lease_minutes: float = Field(10.0, gt=0)
    """Minutes for which a pair is reserved for the person who sees it. After that somebody else may get it."""

    # human: who is trusted
    gold: InputPath | None = None
    """Pairs with known answers, in any preference format of docs/formats.md, hidden among the others."""
    gold_share: float = Field(0.05, ge=0, le=0.5)
    """Share of gold among the pairs that a person sees, while there is gold that they have not seen."""
    repeat_share: float = Field(0.05, ge=0, le=0.5)
    """Share of a person's earlier pairs that come again with the sides swapped, to measure consistency."""
    gold_pass: float = Field(0.7, ge=0, le=1)
    """Share of gold that an annotator has to get right. Annotators below it are reported."""
    exclude_failed_gold: bool = False
    """Whether the labels of annotators below `gold_pass` are left out."""
    qualification: InputPath | None = None
    """Pairs with known answers that everybody labels first, with feedback. The column `explanation` is shown after each
    label."""
    qualification_pass: float = Field(0.7, ge=0, le=1)
    """Share of the qualification that must be right before the work begins."""

    # human: in which order
    selection: Literal["random", "uncertainty"] = "random"
    """Which pairs come first. `uncertainty` prefers those of which a reward model, or the labels so far, are least
    sure; of a reward model with several heads (`reward.ensemble`), those on which the heads disagree. A further round
    does so unless this key is set, by the last round's reward model."""
    control_share: float = Field(0.2, ge=0, le=1)
    """Share of pairs that `selection: uncertainty` draws at random, so that figures stay unbiased."""
    scores: InputPath | None = None
    """Scores of the sampled answers by a reward model of your own, for the first round: lines of {prompt_id, scores:
    [one for each answer]}, and of an ensemble also {heads: [[one for each head] for each answer]}. A further round has
    those of the last reward model."""

    # simulated
    rubric: RubricName = "says-why"
    """Rubric that labels if `source` is `simulated`: `says-why`, or `file.py:name` for your own: a function of (prompt,
    text, finished) that returns points, or a Rubric of several such criteria."""

    # import
    path: PreferencesPath | None = None
    """Preference file to import, in any format of docs/formats.md."""

    # judge
    judge_url: SecretWebUrl | None = None
    """Base URL of an OpenAI-compatible endpoint, such as http://127.0.0.1:8000/v1. Its key is read from the environment
    variable OPENAI_API_KEY."""
    judge_model: str | None = None
    """Name of the endpoint's model."""
    judge_parameters: EndpointParameters = EndpointParameters()
    """Parameters of the request: temperature, limits, any other key. With other parameters it counts as another judge
    with labels of its own."""

    # reward_model
    reward_model: ModelName | None = None
    """Local directory (or hub id) of a sequence-classification model with one output."""
    reward_model_revision: str | None = None
    """Branch, tag or commit of a reward model's hub id, as `model.revision` is of the model's."""

    @field_validator("store")
    @classmethod
    def _beside_the_campaign(cls, value: str | None, info: ValidationInfo) -> str | None:
        if not value or not info.context:
            return value
        import sqlalchemy as sa

        try:
            url = sa.make_url(value)
        except (
            sa.exc.ArgumentError,
            ValueError,
        ):  # the URL may contain a part of a password, so the message does not repeat it
            raise ValueError("is not a database URL; for example sqlite:///labels.sqlite") from None
        if url.username and "@" in f"{url.host}{url.database}":
            raise ValueError("in a password, @ is written %40 and / is written %2F")
        if url.get_backend_name() != "sqlite":
            return value
        if url.database in (None, "", ":memory:") or url.query.get("mode") == "memory":
            raise ValueError("is a database in memory, and labels in it are lost; for example sqlite:///labels.sqlite")
        if url.get_driver_name() != "pysqlite" or url.query:
            raise ValueError("must name a SQLite file and nothing else; for example sqlite:///labels.sqlite")
        url = url.set(database=str(from_campaign(url.database, info)))
        return url.render_as_string(hide_password=False)

    @property
    def store_url(self) -> sa.URL:
        """The URL of the label store. It is an object, since `?`, `%` and `#` in the name of a run's folder would
        have a meaning in the text of a URL."""
        import sqlalchemy as sa

        if self.store:
            return with_password(self.store)
        return sa.URL.create("sqlite", database=str(stage_dir(campaign_dir(self.run_dir), "label") / STORE))

    @model_validator(mode="after")
    def _complete(self) -> LabelConfig:
        needs = {"import": ["path"], "judge": ["judge_url", "judge_model"], "reward_model": ["reward_model"]}
        for source in self.sources:
            source_key = f"source: {source}" if source == self.source else f"also_use: [{source}]"
            if missing := [key for key in needs.get(source, []) if not getattr(self, key)]:
                keys = "the key" if len(missing) == 1 else "the keys"
                are = "is" if len(missing) == 1 else "are"
                raise ValueError(f"with {source_key}, {keys} {' and '.join(missing)} {are} required")
        require_on_hub(self.reward_model, self.reward_model_revision, "reward_model_revision")
        if self.gold_share + self.repeat_share > 0.5:
            raise ValueError("gold_share and repeat_share together are at most 0.5: most pairs must be work")
        if len(set(self.criteria)) < len(self.criteria) or not all(name.strip() for name in self.criteria):
            raise ValueError(f"criteria: each needs its own name, found {self.criteria}")
        if self.task == "ranking" and self.criteria:
            raise ValueError("criteria are for pairs; with task: ranking leave them out")
        return self

    @property
    def sources(self) -> list[Source]:
        """Sources of the exported labels: `source` first."""
        return list(dict.fromkeys([self.source, *self.also_use]))

    @property
    def programs(self) -> dict[Source, str]:
        """Sources that are programs, with the annotator's name of their labels."""
        return {
            "simulated": f"rubric:{short_name(self.rubric)}",
            "judge": f"judge:{self.judge_model}{self.judge_parameters.differing()}",
            "reward_model": f"reward_model:{self.reward_model}",
        }

    def in_round(self, number: int) -> Self:
        """With other prompts first, and with the pairs first that the last reward model leaves open."""
        is_open = self.task == "pairs" and "selection" not in self.model_fields_set
        selection = "uncertainty" if is_open else self.selection
        update = {"seed": self.seed + number - 1, "selection": selection, "scores": None}
        return super().in_round(number).model_copy(update=update)

    def parents(self) -> tuple[str, ...]:
        if self.sources == ["import"]:
            return ()
        return ("sample", f"round-{self.round - 1}/label") if self.round > 1 else ("sample",)

    def identity(self) -> dict[str, Any]:
        """The identity without the keys that only change how people label: their labels are in the store."""
        left_out = {"labels_per_pair", "rationale_share", "lease_minutes", "gold_share", "repeat_share"}
        left_out |= {"qualification", "qualification_pass", "selection", "control_share", "scores"}
        if not {"human", "judge"} & set(self.sources):
            left_out |= {"task", "answers_per_item", "pairs_per_prompt", "scale", "criteria"}
            left_out |= {"guideline", "gold", "gold_pass", "exclude_failed_gold"}
        return {key: value for key, value in super().identity().items() if key not in left_out}

    def input_paths(self) -> list[Path]:
        people_files = (self.gold, self.qualification, self.scores) if "human" in self.sources else ()
        paths = [path for path in (*people_files, self.path if "import" in self.sources else None) if path]
        return [*paths, *self.rubric_files]

    @property
    def rubric_files(self) -> list[Path]:
        """The file of the user's own rubric, if it labels."""
        return rubric_files(self.rubric) if "simulated" in self.sources else []

    @property
    def scorer(self) -> ModelConfig | None:
        if self.reward_model is None or "reward_model" not in self.sources:
            return None
        return self.model.of_key("label.reward_model", self.reward_model, self.reward_model_revision)

    @property
    def headless(self) -> str:
        return f"name {A_REWARD_MODEL}, or train one from it (reward.base)"

    def contents(self) -> dict[str, Contents | None]:
        """Hashes of the reward model that labels, since its name stays if it is trained again."""
        scorer = self.scorer
        return {"reward_model": contents.of_model(scorer.name, scorer.revision)} if scorer else {}

    def hub_ids(self) -> list[HubId]:
        of_rows = hub_ids_of({"label.path": self.path}) if "import" in self.sources else []
        return [*(self.scorer.hub_ids() if self.scorer else []), *of_rows]

    def fingerprint(self) -> dict[str, str | None]:
        """Hashes of the rubric's code, and of people's labels in the store."""
        parts: dict[str, str | None] = {}
        if "simulated" in self.sources:
            parts["rubric"] = rubric_version(self.rubric)
        if "human" in self.sources:
            from ui.labels.store import digest

            parts["labels in the store"] = digest(self.store_url, self.round)
        return parts

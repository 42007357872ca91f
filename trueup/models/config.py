"""The section `model` of a campaign: the base model, and how it is written as text and held in memory. No torch."""

from __future__ import annotations

import os
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    SerializationInfo,
    ValidationInfo,
    model_validator,
)

from trueup.config import Section, StageConfig, Stages, from_campaign
from trueup.models.templates.block import budget
from trueup.provenance import contents
from trueup.provenance.commits import HubId
from trueup.provenance.contents import Contents


def is_path(name: str) -> bool:
    """Whether a model's name can only be a path: a hub id is `name` or `owner/name`."""
    return name.startswith(("/", "~", "./", "../")) or name in (".", "..") or name.count("/") > 1


def is_hub_id(name: str) -> bool:
    """Whether a model's name is a hub id: neither `embedded` nor a path."""
    return name != "embedded" and not is_path(name) and not name.endswith(".gguf")


def require_on_hub(name: str | None, revision: str | None, key: str) -> None:
    """A ValueError if a revision is asked for of what is no hub id."""
    if revision and (not name or not is_hub_id(name) or Path(name).exists()):
        instead = f"{name} is on this machine" if name else "none is named"
        raise ValueError(f"{key}: belongs to a hub id, and {instead}: leave it out")


class ModelPath(str):
    """The absolute path of a model. It remembers how the campaign file writes it, for errors."""

    written: str


def as_written(name: str) -> str:
    """A model's name as the campaign file writes it."""
    return name.written if isinstance(name, ModelPath) else name


def named(key: str, name: str) -> str:
    """The beginning of an error about a model: the key, the name as the campaign file writes it, and the path that it
    means if that is another."""
    written = as_written(name)
    return f"{key}: {written}" if written == name else f"{key}: {written} ({name})"


def _model_path(value: str, info: ValidationInfo) -> str:
    """A model's name as an absolute path if it is a path, or if that file or folder is beside the campaign file."""
    if not value or value == "embedded" or not info.context:
        return value
    path = ModelPath(os.path.abspath(from_campaign(value, info)))
    path.written = value
    return path if is_path(value) or value.endswith(".gguf") or os.path.exists(path) else value


def _template_path(value: Any, info: ValidationInfo) -> Any:
    if not isinstance(value, str) or value in ("auto", *NAMED_TEMPLATES) or not info.context:
        return value
    path = Path(os.path.abspath(from_campaign(value, info)))
    return str(path) if "/" in value or "." in value or os.path.exists(path) else value


def _without_place(value: str | None, info: SerializationInfo) -> str | None:
    """The name for an identity, in which a local path does not count: the files' hashes do (`contents`)."""
    identity = info.context and info.context.get("identity")
    return "<local>" if identity and value and value.startswith("/") else value and str(value)


ModelName = Annotated[str, AfterValidator(_model_path), PlainSerializer(_without_place)]
"""A field type for a hub id, or for a path to a model, relative to the campaign file."""
TemplateName = Annotated[str, BeforeValidator(_template_path), PlainSerializer(_without_place)]


TEMPLATES = Path(__file__).parent / "templates"
NAMED_TEMPLATES = sorted(path.name.removesuffix(".jinja") for path in TEMPLATES.glob("*.jinja"))
"""The templates that come with Trueup, for base models that bring none. Each file says where its form is from."""
TemplateVariable = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")]


A_REWARD_MODEL = "a sequence-classification model with one output"
_OF_THE_MACHINE = ("dtype", "device", "attn_implementation", "load_in_4bit", "trust_remote_code")


class ModelConfig(Section):
    """The base model, and how it is written as text and held in memory."""

    _section: str = "model"
    """The section of the campaign file in which these keys stand."""
    _named_by: str | None = None
    """The key that names the model, if it is one alone (`label.reward_model`) and no section."""

    name: ModelName = "embedded"
    """The base model: `embedded` (SmolLM2-135M-Instruct, needs no hub), a local directory, a `.gguf` file, or a hub id.
    `owner/name` is a hub id unless that folder is beside the campaign file."""
    revision: str | None = None
    """Branch, tag or commit of a hub id. A run stays at the commit that it began with until `trueup run` finds that the
    branch has moved (docs/models.md)."""
    adapter: ModelName | None = None
    """A LoRA adapter over the base model, as PEFT saves it: a local directory or a hub id. With `sft: none` the model
    with this adapter is the SFT policy. The adapter's own tokenizer and chat template are used if it brings them."""
    adapter_revision: str | None = None
    """Branch, tag or commit of an adapter's hub id, as `revision` is of the model's."""
    chat_template: TemplateName = "auto"
    """How a conversation is written as text. `auto` keeps the template of the tokenizer, and takes `plain` where it has
    none. `alpaca`, `chatml`, `gemma`, `llama2`, `llama3`, `mistral`, `phi3`, `plain`, `qwen`, `vicuna_v1.1` and
    `zephyr` come with Trueup (docs/models.md); anything else is the path of a Jinja file."""
    chat_template_kwargs: dict[TemplateVariable, bool | int | float | str] = Field({})
    """Values of the template's own variables, such as {reasoning_effort: low}. They become its defaults, so training,
    sampling, the comparison and an export render with them."""
    thinking: bool = False
    """Whether a model that can reason before it answers does so. If not, the template's switch is turned off, or the
    block of reasoning is closed before the answer begins. Reasoning is trained on, and neither judged nor measured; it
    has a budget of its own (`max_thinking_tokens` of `sample`, of `align` and of each check)."""
    fold_system: bool = False
    """Whether a system text is written at the head of the next user turn, for a template that has no system turn or
    no later one."""
    template_date: date = date(2026, 1, 1)
    """The date that a template gives which asks for today's (Llama 3.2, Mistral Small, gpt-oss). It is fixed, because a
    prompt that changes with the day would be trained on one day and asked in another form on the next."""
    new_tokens: bool = False
    """Whether the two markers of `chatml` are added to a vocabulary that lacks them, and their embeddings trained."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the weights as they are read. `auto` prints its choice and the reason. With `float32` a GPU does not
    train in bf16 either. What a stage trained is saved in float32 (docs/exporting.md)."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where the model runs. `auto` takes a GPU if PyTorch sees one."""
    attn_implementation: str = "auto"
    """Attention code, by the names of transformers (`eager`, `sdpa`, `flash_attention_2`). `auto` leaves the choice to
    transformers."""
    load_in_4bit: bool = False
    """Whether the frozen base is quantised to 4 bits (QLoRA), which needs a CUDA device and bitsandbytes."""
    trust_remote_code: bool = False
    """Whether Python that comes with the model may run. It may not by default: a model file should be data."""

    @model_validator(mode="after")
    def _revisions_of_hub(self) -> ModelConfig:
        require_on_hub(self.name, self.revision, "revision")
        require_on_hub(self.adapter, self.adapter_revision, "adapter_revision")
        return self

    def key(self, field: str) -> str:
        """A field's key in the campaign file. Of a model that one key names, what comes with its files has that key."""
        if self._named_by is None or field in _OF_THE_MACHINE:
            return f"{self._section}.{field}"
        return f"{self._named_by}_revision" if field == "revision" else self._named_by

    @property
    def section(self) -> str | None:
        """The section whose keys say how conversations are written for this model; None if there are none."""
        return None if self._named_by else self._section

    @property
    def named(self) -> str:
        """The key of the model and its name, as an error begins."""
        return named(self.key("name"), self.name)

    def of_section(self, section: str) -> ModelConfig:
        """The same values, as those of another section of the campaign file, which errors name."""
        config = self.model_copy()
        config._section = section
        return config

    def of_key(self, key: str, name: str, revision: str | None) -> ModelConfig:
        """Another model, which one key names. It is held in memory as this one, and written in its own template."""
        here = {field: getattr(self, field) for field in _OF_THE_MACHINE}
        config = ModelConfig().model_copy(update={**here, "name": name, "revision": revision})
        config._section, config._named_by = self._section, key
        return config

    def thinking_budget(self, tokens: int) -> int:
        """Most tokens of reasoning: those of a stage's key where the model reasons."""
        return budget(tokens) if self.thinking else 0

    @property
    def hub_id(self) -> HubId | None:
        """The base model's hub id, if it has one."""
        return HubId(self.name, self.revision, self.key("name")) if is_hub_id(self.name) else None

    @property
    def adapter_hub_id(self) -> HubId | None:
        """The adapter's hub id, if it has one."""
        if self.adapter is None or not is_hub_id(self.adapter):
            return None
        return HubId(self.adapter, self.adapter_revision, self.key("adapter"))

    def hub_ids(self) -> list[HubId]:
        """The hub ids among the names."""
        return [hub_id for hub_id in (self.hub_id, self.adapter_hub_id) if hub_id]

    def contents(self) -> dict[str, Contents | None]:
        """Hashes behind the base model's name: weights, tokenizer, its adapter, and the user's own template."""
        files = {"model.name": contents.of_model(self.name, self.revision)}
        if self.adapter:
            files["model.adapter"] = contents.of_model(self.adapter, self.adapter_revision)
        if self.chat_template not in ("auto", *NAMED_TEMPLATES):
            files["model.chat_template"] = contents.of_file(self.chat_template)
        return files


class ModelStageConfig(StageConfig):
    """Keys of a stage that loads the base model, or one that was trained from it."""

    model: ModelConfig

    def conflicts(self, stages: Stages) -> list[str]:
        if self.model.thinking:
            return []
        sections = {"": [self], "checks.": getattr(self, "checks", [])}
        return [
            f"{self.stage}.{place}max_thinking_tokens: limits reasoning, and model.thinking is off: leave it out"
            for place, many in sections.items()
            if any("max_thinking_tokens" in section.model_fields_set for section in many)
        ]

    @property
    def scorer(self) -> ModelConfig | None:
        """The reward model that a key of this stage names, or the base of one."""
        return None

    @property
    def headless(self) -> str | None:
        """What to do about a `scorer` that is a language model; None: it gets a fresh head, and is trained."""
        return None

"""A trial of each training stage: it builds all that the stage builds before its first step, on a model without memory,
so that a mistake fails at once.

A model on PyTorch's meta device has shapes and no values: seventy billion weights take a second. On it a stage's own
`trial` builds its real trainer over sample rows: TRL's arguments, the adapter in its modules, optimiser, schedule and
data loader. The key that causes an error is found by leaving keys out.

`trueup check` tries every stage that trains. A stage in its process tries itself and the stages after it.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import logging
import os
import random
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from trueup.campaign import Campaign
from trueup.console import muted, say
from trueup.errors import ConfigError, ModelError, TrueupError, did_you_mean
from trueup.models import loading
from trueup.models.config import ModelConfig, ModelStageConfig
from trueup.models.heads import add_score_head, require_score_head
from trueup.models.loading import Loaded
from trueup.models.placement import place
from trueup.models.sources.settings import read_settings, source_of
from trueup.runs import StageRun, stage_dir
from trueup.stages import load_object
from trueup.training import own_adapter
from trueup.training.allowed import wrong_values
from trueup.training.config import LoRAConfig, TrainConfig

# ---- A model without memory -------------------------------------------------------------------------------------


class Stage:
    """A stage's model on the meta device, new for each attempt, since a trainer changes its model."""

    def __init__(self, config: ModelConfig, settings: PretrainedConfig, tokenizer: Any, fresh_head: bool | None = None):
        """
        fresh_head  the model that is named is to score, and gets a fresh head for it or keeps its own; None: it is a
                    language model
        """
        self.config, self.settings, self.tokenizer, self.fresh_head = config, settings, tokenizer, fresh_head

    def named(self) -> PreTrainedModel:
        """The model that is named, as what it is named for: a language model or a reward model."""
        model = self.model(scores=self.fresh_head is not None).model
        if self.fresh_head is not None:
            require_score_head(self.config, model)
        return model

    def model(self, scores: bool) -> Loaded:
        """scores  the model has a head of one output, as a reward model; otherwise that of a language model"""
        placement = place(self.config)
        settings = copy.deepcopy(self.settings)
        kind: Any = AutoModelForCausalLM
        if scores:
            add_score_head(settings)
            settings.num_labels, kind = 1, AutoModelForSequenceClassification
            own = self.config.trust_remote_code and kind.__name__ in (getattr(settings, "auto_map", None) or {})
            if not own and type(settings) not in kind._model_mapping:
                raise ModelError(
                    f"{self.config.named}: neither transformers nor the model's own code has a reward model (sequence "
                    f"classification) of {settings.model_type}"
                )
        attention = {"attn_implementation": placement.attention} if placement.attention else {}
        trusted = self.config.trust_remote_code
        with torch.device("meta"):
            model = kind.from_config(settings, dtype=placement.dtype, trust_remote_code=trusted, **attention)
            if len(self.tokenizer) > model.get_input_embeddings().num_embeddings:
                model.resize_token_embeddings(len(self.tokenizer), mean_resizing=False)
        model.config.pad_token_id = self.tokenizer.pad_token_id
        model.config.eos_token_id = self.tokenizer.eos_token_id
        return Loaded(model, self.tokenizer, placement)


def stand_in(stages: Mapping[str, Any]) -> tuple[PretrainedConfig, Any]:
    """Settings and tokenizer of a small Llama, for a model that is not on this machine. It has as many layers as the
    stages ask for, since the true number is unknown."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["<|endoftext|>", "<pad>", "a", "b"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<pad>")
    fast.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    layers = max((each.lora.last_layers or 1 for each in stages.values() if isinstance(each, TrainConfig)), default=1)
    settings = LlamaConfig(
        vocab_size=len(words), hidden_size=8, intermediate_size=8, num_attention_heads=1, num_hidden_layers=layers
    )
    return settings, fast


TRIED = frozenset(
    """llama mistral qwen2 qwen3 qwen3_moe mixtral gemma gemma2 gemma3_text gemma3 phi3 olmo olmo2 granite cohere
    cohere2 qwen3_5 starcoder2 stablelm smollm3 gpt_neox gpt2 opt bloom mpt falcon deepseek_v3 gpt_oss lfm2""".split()
)
"""Architectures that go through every stage: docs/models.md, by benchmarks/architectures.py."""
REFUSED = {
    kind: "its state is carried from token to token, and padded batches of it do not read as single texts do"
    for kind in ("mamba", "mamba2", "falcon_mamba", "rwkv")
} | {"falcon_h1": "a step of its reward model over padded rows leaves weights that are not finite"}
"""Architectures that do not, with the reason."""


def tried(model: Stage) -> str | None:
    """A note on an architecture that has not been tried in every stage."""
    settings, kind = model.settings, model.settings.model_type
    if {kind, settings.get_text_config().model_type} & TRIED:
        return None
    return f"{model.config.key('name')}: {kind} is not among the architectures tried (docs/models.md)"


def no_language_model(settings: PretrainedConfig, config: ModelConfig) -> str | None:
    """Why transformers has no class that continues a text for a model; None if it has, or if the model brings one."""
    if type(settings) in AutoModelForCausalLM._model_mapping or config.trust_remote_code:
        return None
    why = "it has no class for the text part of this model alone" if settings.sub_configs else "it is no decoder"
    return f"{settings.model_type} has no language model in transformers, since {why}: name a model of text"


# ---- The stages -------------------------------------------------------------------------------------------------


def try_stages(stages: Mapping[str, Any], model: Stage) -> list[str]:
    """A line `stage.key: problem` for everything that prevents a stage from being built."""
    problems: list[str] = []
    for stage, config in stages.items():
        if isinstance(config, TrainConfig):
            problems += [line for line in _try_stage(stage, config, model) if line not in problems]
    return problems


def try_model(model: Stage) -> list[str]:
    """Problems that prevent the model itself from being built or trained: device, attention, architecture."""
    config, attention = model.config, model.config.attn_implementation
    key = f"{config.key('attn_implementation')}: {attention}"
    if attention.startswith("paged|"):
        return [f"{key}: is for a server that answers many at once, and trains nothing"]
    with contextlib.suppress(TrueupError):
        if attention == "flex_attention" and place(config).device.type != "cuda":
            return [f"{key}: trains on a CUDA device alone; use sdpa or auto"]
    if (reason := REFUSED.get(model.settings.model_type)) is not None:
        return [f"{config.named}: {model.settings.model_type} is not supported: {reason}"]
    if model.fresh_head is not False and (reason := no_language_model(model.settings, config)):
        return [f"{config.named}: {reason}"]
    try:
        with aside():
            model.named()
    except Exception as error:
        if isinstance(error, TrueupError):
            return [str(error)]
        for field in ("attn_implementation", "dtype"):
            without = config.model_copy(update={field: "auto"})
            with contextlib.suppress(Exception), aside():
                Stage(without, model.settings, model.tokenizer, model.fresh_head).named()
                return [f"{config.key(field)}: {getattr(config, field)}: {_message(error)}"]
        return [f"{config.named}: {_message(error)}"]
    return []


def try_weights(source: str, model: Stage, announce: Callable[[str], object] = say) -> list[str]:
    """A problem unless the files of the model hold all its weights, each in its shape.

    announce  is given a sentence on the weights that are left out
    """
    try:
        with aside():
            loading.without_memory(source, model.config, model.fresh_head, announce)
    except TrueupError as error:
        return [str(error)]
    return []


def try_adapter(model: Stage) -> list[str]:
    """A problem unless the adapter that the config names can be read, and fits the model."""
    try:
        with aside():
            own_adapter.require_fitting(
                model.config, own_adapter.read_adapter(model.config), model.model(scores=False).model
            )
    except TrueupError as error:
        return [str(error)]
    return []


def try_quantisation(config: ModelConfig) -> list[str]:
    """Problems of `load_in_4bit` on this machine."""
    key = config.key("load_in_4bit")
    if importlib.util.find_spec("bitsandbytes") is None:
        return [f"{key}: needs bitsandbytes, which is not installed: pip install bitsandbytes"]
    with contextlib.suppress(TrueupError):
        if place(config).device.type != "cuda":
            return [f"{key}: needs a CUDA device; without one, leave it out"]
    return []


def plain(config: ModelConfig) -> ModelConfig:
    """The section without the keys that may be wrong, so that the stages can be tried all the same."""
    return config.model_copy(update={**ModelConfig().model_dump(), "name": config.name})


def refuse_unbuildable(campaign: Campaign, names: Sequence[str]) -> None:
    """A ConfigError with all that prevents these stages from being built; the first of them is about to begin."""
    config, saved = campaign.config.model, stage_dir(campaign.run_dir, "sft") / "model"
    stages = {name: campaign.stages[name] for name in names}
    own = {name: stage for name, stage in stages.items() if isinstance(stage, ModelStageConfig) and stage.scorer}
    problems = [line for name, stage in own.items() for line in _try_scorer(name, stage)]
    try:
        if names[0] == "sft" or not saved.is_dir():
            settings = read_settings(source_of(config, weights=False), config)
            tokenizer = loading.load_base_tokenizer(config)
        else:
            settings, tokenizer = read_settings(str(saved), config), loading.read_tokenizer(saved, config)
        model = Stage(config, settings, tokenizer)
        problems += try_model(model) or try_stages({name: stages[name] for name in stages if name not in own}, model)
    except TrueupError:
        pass  # the stage reports it when it loads the model
    if problems:
        raise ConfigError(campaign.source, problems)


def _try_scorer(name: str, config: ModelStageConfig) -> list[str]:
    """The problems of a stage that scores by another model than the campaign's, or trains one."""
    assert config.scorer is not None
    try:
        source, model = source_of(config.scorer), scorer_of(config)
    except TrueupError as error:
        return [str(error)]
    return try_model(model) or [*try_weights(source, model), *try_stages({name: config}, model)]


def scorer_of(config: ModelStageConfig) -> Stage:
    """The reward model that a stage names, or the base of one; a ModelError unless it can be one."""
    scorer = config.scorer
    assert scorer is not None
    settings, fresh_head = loading.scorer_settings(scorer, config.headless)
    return Stage(scorer, settings, loading.load_base_tokenizer(scorer), fresh_head)


def _try_stage(stage: str, config: TrainConfig, model: Stage) -> list[str]:
    problems: list[str] = []
    if not config.full_finetuning:
        try:
            with aside():
                problems = _targets(stage, config.lora, model.model(config.stage == "reward").model)
        except Exception as error:
            return [f"{stage}: {_message(error)}"]
        if problems:
            config = _without_targets(config)
    wrong = wrong_values(getattr(config, "algorithm", config.stage), config.trainer_args)
    problems += [f"{stage}.trainer_args.{key}: {what}" for key, what in wrong.items()]
    for key in (*wrong, *_OF_SEVERAL_PROCESSES):
        config = _without_argument(config, key)
    if missing := {name: TRACKERS[name] for name in config.report_to if name in TRACKERS and not _is_installed(name)}:
        problems += [f"{stage}.report_to: {name} is not installed: pip install {of}" for name, of in missing.items()]
        config = config.model_copy(update={"report_to": [name for name in config.report_to if name not in missing]})
    for _ in range(1 + len(_keys(config))):
        raised = _attempt(config, model)
        if raised is None:
            return problems
        for key, without in _keys(config).items():
            other = _attempt(without, model)
            if other is None or _message(other) != _message(raised):
                problems += _lines(f"{stage}.{key}", raised)
                config = without
                break
        else:
            return problems + _lines(stage, raised)
    return problems


def _lines(key: str, error: Exception) -> list[str]:
    """The error as lines that begin with its key."""
    if isinstance(error, ConfigError):
        stage = key.partition(".")[0]
        first = str(error).partition(": ")[0]
        return [line if line.startswith(f"{stage}.") else f"{first}: {line}" for line in error.problems]
    return [f"{key}: {_message(error)}"]


def _attempt(config: TrainConfig, model: Stage) -> Exception | None:
    """Build all that the stage builds, and return the exception, if any."""
    if config.per_device_train_batch_size == "auto":  # `auto` measures memory on a GPU, and this model has none
        config = config.model_copy(update={"per_device_train_batch_size": 1})
    try:
        with aside() as folder:
            run = StageRun(config, folder, resumed=False, parents=[])
            loaded = model.model(scores=config.stage == "reward")
            with torch.device("meta"):
                trainer = load_object(config.trial)(config, run, loaded)
            trainer.create_optimizer_and_scheduler(num_training_steps=max(config.max_steps, 8))
            trainer.get_train_dataloader()
            return None
    except Exception as error:
        # TRL's own message: ours lists all arguments, so it would differ whenever one is left out.
        cause = error.__cause__ if isinstance(error, ConfigError) else None
        return cause if isinstance(cause, Exception) else error


_OF_SEVERAL_PROCESSES = ("fsdp", "fsdp_config")
"""Arguments that one process refuses and `accelerate launch` accepts: they cannot be tried here."""
_ALIKE = "clearml codecarbon comet_ml dagshub dvclive mlflow neptune swanlab tensorboard trackio wandb".split()
TRACKERS = {"azure_ml": "azureml", "flyte": "flytekit", **{name: name for name in _ALIKE}}
"""Trackers, and the package of each. A missing tracker is not built: half of one would complain at exit."""


def _is_installed(tracker: str) -> bool:
    return importlib.util.find_spec(TRACKERS[tracker]) is not None


def _keys(config: TrainConfig) -> dict[str, TrainConfig]:
    """Each key that may be to blame, with the config without it."""
    configs = {f"trainer_args.{key}": _without_argument(config, key) for key in config.trainer_args}
    defaults = {name: field.get_default() for name, field in type(config).model_fields.items()}
    for name in ("lr_scheduler_type", "report_to", "per_device_train_batch_size"):
        if getattr(config, name) != defaults[name]:
            configs[name] = config.model_copy(update={name: defaults[name]})
    if config.lora != LoRAConfig():
        configs["lora"] = config.model_copy(update={"lora": LoRAConfig()})
    return configs


def _without_argument(config: TrainConfig, key: str) -> TrainConfig:
    return config.model_copy(update={"trainer_args": {k: v for k, v in config.trainer_args.items() if k != key}})


def _without_targets(config: TrainConfig) -> TrainConfig:
    lora = config.lora.model_copy(update={"target_modules": "all-linear", "last_layers": None})
    return config.model_copy(update={"lora": lora})


def _targets(stage: str, lora: LoRAConfig, model: PreTrainedModel) -> list[str]:
    """Problems of target names that no module has. PEFT accepts a list if one name fits, and drops the others."""
    layers = model.config.get_text_config().num_hidden_layers
    if (lora.last_layers or 0) > layers:
        return [f"{stage}.lora.last_layers: {lora.last_layers}, but the model has {layers} layers"]
    names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear | Conv1D)]
    short_names = sorted({name.rpartition(".")[2] for name in names})
    targets = lora.target_modules
    if targets == "all-linear":
        return []
    if isinstance(targets, str) and not lora.last_layers:
        try:
            if any(re.fullmatch(targets, name) for name in names):
                return []
        except re.error as error:
            return [f"{stage}.lora.target_modules: {targets!r} is no regular expression: {error}"]
        suggestion = did_you_mean(targets, [f"[{name}]" for name in short_names])
        return [
            f"{stage}.lora.target_modules: no linear module's full name matches {targets!r} (a list holds names, a "
            f"text is a regular expression){suggestion}"
        ]
    return [
        f"{stage}.lora.target_modules: no linear module is called {target!r}{did_you_mean(target, short_names)}"
        for target in ([targets] if isinstance(targets, str) else targets)
        if not any(name == target or name.endswith(f".{target}") for name in names)
    ]


def _message(error: Exception) -> str:
    """The beginning of a library's error message."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = text if len(text) <= 300 else f"{text[:297]}..."
    return text if isinstance(error, TrueupError) else f"{text} ({type(error).__name__})"


# ---- Without a trace --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def aside() -> Iterator[Path]:
    """A temporary folder. Whatever is built meanwhile leaves no trace: no generator, no environment, no output."""
    from accelerate.state import AcceleratorState, GradientState
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    environment, states = dict(os.environ), (random.getstate(), np.random.get_state())
    quiet = io.StringIO()
    original = torch.nn.Module.to
    level = logging.root.manager.disable
    with (
        tempfile.TemporaryDirectory(prefix="trueup-trial-") as folder,
        torch.random.fork_rng(),
        warnings.catch_warnings(),
        contextlib.redirect_stdout(quiet),
        contextlib.redirect_stderr(quiet),
        muted(),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        torch.nn.Module.to = _stay(original)  # type: ignore[method-assign]
        try:
            yield Path(folder)
        finally:
            torch.nn.Module.to = original  # type: ignore[method-assign]
            logging.disable(level)
            os.environ.clear()
            os.environ.update(environment)
            random.setstate(states[0])
            np.random.set_state(states[1])
            unset_hf_deepspeed_config()
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()


def _stay(move: Callable[..., Any]) -> Callable[..., Any]:
    """A model without memory cannot be moved to a device, and need not be."""

    def to(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        return module if any(weight.is_meta for weight in module.parameters()) else move(module, *args, **kwargs)

    return to

"""Models and tokenizers: the embedded default, hub ids, local directories and GGUF files; device and dtype.

Every automatic choice prints its reason. Weights are read and written as safetensors only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from trueup.console import say
from trueup.errors import ModelError
from trueup.files import obey_umask
from trueup.launching import processes
from trueup.models import heads
from trueup.models.config import ModelConfig, as_written, named
from trueup.models.placement import Placement, place
from trueup.models.sources.embedded import EMBEDDED, EMBEDDED_NAME
from trueup.models.sources.files import adapter_folder
from trueup.models.sources.gguf import gguf_stops, gguf_tokenizer, load_gguf
from trueup.models.sources.settings import not_loaded, read_settings, source_of
from trueup.models.templates.choice import set_pad_token, set_template, settle_from_elsewhere
from trueup.models.templates.ends import choice_of, set_choice, turn_ends

# ---- Loading ----------------------------------------------------------------------------------------------------


@dataclass
class Loaded:
    """A model on its device with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    placement: Placement
    unread: int = 0
    """How many answers it could not read, of a reward model."""


def load_base(config: ModelConfig, master_weights: bool = False) -> Loaded:
    """The base model that the config names, with the chat template that it names.

    master_weights  keep float32 weights on a GPU too: for full fine-tuning, whose small updates bf16 would round away
    """
    placement = place(config, master_weights)
    say(f"{'base model':<12} {EMBEDDED_NAME if config.name == EMBEDDED else config.name}: {placement.reason}")
    tokenizer = load_base_tokenizer(config, announce=_say_tokenizer)
    source = source_of(config)
    if source.endswith(".gguf"):
        model, _ = load_gguf(Path(source), AutoModelForCausalLM, placement.dtype)
        model.to(placement.device)
    else:
        model = _from_pretrained(AutoModelForCausalLM, source, config, placement, quantise=config.load_in_4bit)
    if config.hub_id:  # an adapter's file names its base: by the hub id, and not by a folder of this machine
        model.name_or_path = model.config._name_or_path = config.name
    _grow_vocabulary(model, tokenizer)
    _agree_on_tokens(model, tokenizer)
    return Loaded(model, tokenizer, placement)


def base_without_memory(config: ModelConfig) -> Loaded:
    """The base model as `load_base` gives it, but on the meta device and with the vocabulary of its files: for all that
    is saved beside the weights."""
    tokenizer = load_base_tokenizer(config, announce=_say_tokenizer)
    model = without_memory(source_of(config), config)
    _agree_on_tokens(model, tokenizer)
    return Loaded(model, tokenizer, place(config))


def _grow_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Add embeddings for new tokens if the model has no spare rows for them."""
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        with torch.random.fork_rng(devices=[]):  # the same random first values for new tokens in every run
            torch.manual_seed(0)
            model.resize_token_embeddings(len(tokenizer))


def _say_tokenizer(summary: str) -> None:
    say(f"{'tokenizer':<12} {summary}")


def load_base_tokenizer(
    config: ModelConfig, announce: Callable[[str], object] | None = None
) -> PreTrainedTokenizerBase:
    """The base model's tokenizer, with the config's chat template and a pad token that is not EOS. A reward model that
    a key names alone keeps its own template: what it scores is prompt, answer and end of turn, too.

    announce  is given the choices of template and tokens, with their reasons
    """
    tokenizer = _own_tokenizer(config)
    if config.section:
        summary = set_template(tokenizer, config, _stops(config))
    elif summary := choice_of(tokenizer) or "":  # Trueup saved it
        set_choice(tokenizer, summary, None)
    else:
        summary = settle_from_elsewhere(tokenizer, config, _stops(config))
    if announce:
        announce(summary)
    return tokenizer


def _own_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer as it comes: with an adapter that brings one, the adapter's, else the base model's."""
    adapter = adapter_folder(config, weights=False)
    if adapter is not None and (adapter / "tokenizer_config.json").is_file():
        return _as_it_stands(adapter, config, named(config.key("adapter"), str(config.adapter)))
    return _as_it_stands(source_of(config, weights=False), config)


def _as_it_stands(source: Path | str, config: ModelConfig, subject: str | None = None) -> PreTrainedTokenizerBase:
    try:
        if str(source).endswith(".gguf"):
            return gguf_tokenizer(Path(source))
        return AutoTokenizer.from_pretrained(source, trust_remote_code=config.trust_remote_code)
    except Exception as error:
        raise not_loaded(config, subject, error) from error


def brings_template(config: ModelConfig) -> bool:
    """Whether the model, or its adapter, comes with a chat template of its own."""
    return bool(_own_tokenizer(config).chat_template)


def _stops(config: ModelConfig) -> list[int]:
    """Ids at which the model stops by its generation config, or else by its config."""
    source = source_of(config, weights=False)
    if source.endswith(".gguf"):
        return gguf_stops(Path(source))
    trusted = {"trust_remote_code": config.trust_remote_code}
    try:
        stops = GenerationConfig.from_pretrained(source, **trusted).eos_token_id
    except OSError:  # many models have none
        stops = getattr(read_settings(source, config).get_text_config(), "eos_token_id", None)
    return [stops] if isinstance(stops, int) else list(stops or [])


def new_token_ids(config: ModelConfig, base: Loaded) -> list[int]:
    """Ids of the tokens that `new_tokens` added to the base model's vocabulary: their embeddings must be trained."""
    if not config.new_tokens:
        return []
    return base.tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])


@dataclass(frozen=True)
class SavedPolicy:
    """A policy on disk: a directory with a causal model (None: the base model that the config names), and the adapter
    on it, if a stage saved one."""

    directory: Path | None
    adapter: Path | None = None
    merged: Path | None = None
    """The same policy as plain weights."""

    def load(self, config: ModelConfig) -> Loaded:
        """The policy on the device that the config asks for. Below float32 the adapter is not added to the weights:
        most of its change would be rounded away (trueup/training/merging.py)."""
        exact = place(config).dtype == torch.float32
        if self.merged and exact:
            loaded = load_policy(self.merged, config)
        else:
            loaded = load_policy(self.directory, config) if self.directory else load_base(config)
            if self.adapter:
                from peft import PeftModel

                adapted = PeftModel.from_pretrained(loaded.model, self.adapter)
                loaded.model = adapted.merge_and_unload() if exact else adapted.get_base_model()
        loaded.model.eval()
        return loaded

    @classmethod
    def of_stage(cls, stage: Path, parent: Path | None) -> SavedPolicy:
        """The policy that a stage trained from the one in `parent`, if that is known. Without an adapter, all weights
        were trained."""
        model, adapter = stage / "model", stage / "adapter"
        return cls(parent, adapter, model) if parent and adapter.is_dir() else cls(model)


def load_policy(directory: Path, config: ModelConfig, master_weights: bool = False) -> Loaded:
    """A causal model that a stage saved, on the device that the config asks for."""
    return _load_saved(AutoModelForCausalLM, directory, config, master_weights)


def load_reward_model(
    directory: Path, config: ModelConfig, master_weights: bool = False, fresh_head: bool = False
) -> Loaded:
    """A sequence-classification model with one output.

    fresh_head  the directory holds a policy, and the head starts with random weights
    """
    kind = AutoModelForSequenceClassification
    return _load_saved(kind, directory, config, master_weights, num_labels=1, fresh_head=fresh_head)


def new_reward_model(directory: Path, config: ModelConfig, master_weights: bool = False) -> Loaded:
    """A policy with a fresh head of one output, and with a pad token that has no other use.

    transformers reads the score at the last token that is not padding, and finds padding by its id. An answer may end
    with EOS or, if it was cut, with any token that the policy knows. So the pad token is new to the policy. Then ids
    and positions agree on the last token: in training, in `trueup.models.scoring.score_readings` and wherever the saved
    model is read. Padding stands on the right, because models with absolute positions would read it as text on the
    left."""
    return with_pad_token(load_reward_model(directory, config, master_weights, fresh_head=True))


def scorer_settings(config: ModelConfig, headless: str | None) -> tuple[PretrainedConfig, bool]:
    """The settings of a model that the campaign names for scores, and whether its head is fresh. A ModelError if it can
    become no reward model."""
    if config.name.endswith(".gguf"):
        raise ModelError(
            f"{config.named}: a .gguf file cannot become a reward model: name a directory or a hub id with safetensors "
            "weights"
        )
    settings = read_settings(source_of(config, weights=False), config)
    return settings, heads.needs_head(config, settings, headless)


def load_scorer(config: ModelConfig, headless: str | None, master_weights: bool = False) -> tuple[Loaded, bool]:
    """A model that the campaign names for scores, with a head of one output, and whether this head is fresh.

    headless  as in `trueup.models.config.ModelStageConfig`
    """
    _, fresh = scorer_settings(config, headless)
    placement = place(config, master_weights)
    head = "gets a fresh head" if fresh else "is a reward model and keeps its head"
    say(f"{'reward model':<12} {as_written(config.name)} ({config.key('name')}) {head}, {placement.reason}")
    tokenizer = load_base_tokenizer(config, announce=_say_tokenizer)
    kind = AutoModelForSequenceClassification
    model = _from_pretrained(kind, source_of(config), config, placement, fresh_head=fresh, num_labels=1)
    heads.require_score_head(config, model)
    heads.load_ensemble(model, Path(source_of(config)))
    _without_dropout(model)
    _agree_on_tokens(model, tokenizer)
    return Loaded(model, tokenizer, placement), fresh


def with_pad_token(loaded: Loaded) -> Loaded:
    """A reward model with a pad token that has no other use, as `new_reward_model` says."""
    loaded.tokenizer.add_special_tokens({"pad_token": "<|trueup_pad|>"})
    loaded.tokenizer.padding_side = "right"
    if hasattr(loaded.model, "score"):
        heads.train_in_float32(loaded.model.score)
    _grow_vocabulary(loaded.model, loaded.tokenizer)
    _agree_on_tokens(loaded.model, loaded.tokenizer)
    return loaded


def _load_saved(kind: Any, directory: Path, config: ModelConfig, master_weights: bool, **kwargs: Any) -> Loaded:
    placement = place(config, master_weights)
    tokenizer = read_tokenizer(directory, config)
    set_pad_token(tokenizer)
    model = _from_pretrained(kind, str(directory), config, placement, subject=str(directory), **kwargs)
    if kind is AutoModelForSequenceClassification:
        heads.load_ensemble(model, directory)
    _without_dropout(model)
    _agree_on_tokens(model, tokenizer)
    return Loaded(model, tokenizer, placement)


def read_tokenizer(directory: Path | str, config: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer that a stage saved, as it stands."""
    return _as_it_stands(directory, config, str(directory))


def _without_dropout(model: PreTrainedModel) -> None:
    """Turn off all dropout. A model that is trained from a policy starts as that policy and is compared with it.

    TRL sets modules of the class Dropout to 0; OPT, Falcon and others keep a rate and drop by a function.
    """
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, float) and "drop" in name:
                setattr(module, name, 0.0)


def _from_pretrained(
    kind: Any,
    source: str,
    config: ModelConfig,
    placement: Placement,
    quantise: bool = False,
    fresh_head: bool = False,
    subject: str | None = None,
    announce: Callable[[str], object] = say,
    **kwargs: Any,
) -> PreTrainedModel:
    """
    subject   as of `not_loaded`
    announce  is given a sentence on the weights that are left out
    """
    if quantise:
        from transformers import BitsAndBytesConfig

        if placement.device.type != "cuda":
            raise ModelError(f"{config.key('load_in_4bit')}: needs a CUDA device; without one, leave it out")
        kwargs["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=placement.dtype
        )
    if placement.attention:
        kwargs["attn_implementation"] = placement.attention
    if kind is AutoModelForSequenceClassification:
        heads.add_score_head(read_settings(source, config, subject))
    try:
        model, loading_info = kind.from_pretrained(
            source,
            dtype=placement.dtype,
            trust_remote_code=config.trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, with their names
            **kwargs,
        )
        model.to(placement.device)
    except Exception as error:
        raise not_loaded(config, subject, error) from error
    _require_all_weights(subject or config.named, model, loading_info, fresh_head)
    if subject is None:
        _require_no_lost_head(source, config, model, loading_info["unexpected_keys"], fresh_head, announce)
        whole = read_settings(source, config)
        if type(model.config) is not type(whole):
            announce(
                f"{config.named}: {whole.model_type} is read as {type(model).__name__}: text alone, without images"
            )
    heads.let_router_be(model)
    return model


def _require_all_weights(subject: str, model: PreTrainedModel, info: Mapping[str, Any], fresh_head: bool) -> None:
    """A ModelError if the checkpoint lacks a weight or has it in another shape. transformers would only warn, and draw
    the weight at random."""
    weights = dict(model.named_parameters(remove_duplicate=False))
    missing = set(info["missing_keys"]) & weights.keys()
    shared = {id(weight) for name, weight in weights.items() if name not in missing}
    lacking = {name: "is missing" for name in missing if id(weights[name]) not in shared}
    lacking |= {name: f"is {[*shape]}, not {[*expected]}" for name, shape, expected in info["mismatched_keys"]}
    if fresh_head:
        lacking = {name: what for name, what in lacking.items() if not name.startswith("score.")}
    if lacking:
        first = min(lacking)
        raise ModelError(
            f"{subject}: {len(lacking)} of {len(weights)} weights are not in its files as its config.json "
            f"expects them, and would be drawn at random ({first} {lacking[first]}): fetch or save the model again"
        )


def _require_no_lost_head(
    source: str,
    config: ModelConfig,
    model: PreTrainedModel,
    unexpected: Collection[str],
    fresh_head: bool,
    announce: Callable[[str], object],
) -> None:
    """Say which weights of the files are no part of the model. A ModelError if it is to score: the head of a reward
    model that was saved as another class would be lost, and one with random weights take its place."""
    is_scorer = hasattr(model, "score")
    if is_scorer and (unexpected or fresh_head):
        # The head of a language model is no part of a reward model either, and is no loss. Before a head is made, one
        # in the files counts as lost.
        with suppress(ValueError):  # of an architecture without a language model
            beyond = _beyond_language_model(source, config)
            unexpected = beyond if fresh_head else beyond & set(unexpected)
    if not unexpected:
        return
    names, kind = sorted(unexpected), type(model).__name__
    listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    if not is_scorer:
        announce(f"{config.named}: unexpected weights: {listed}: they are no part of {kind}, and are left out")
        return
    classes = ", ".join(model.config.architectures or ["no class"])
    raise ModelError(
        f"{config.named}: unexpected weights: {listed}: they are no part of {classes}, which its config.json names, "
        f"and would be lost: save a reward model as {kind} with its head as score.weight, and any other without them"
    )


def _beyond_language_model(source: str, config: ModelConfig) -> set[str]:
    """The weights of the files that are no part of a language model. No weight is read."""
    try:
        _, info = AutoModelForCausalLM.from_pretrained(
            source,
            trust_remote_code=config.trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            device_map="meta",
        )
    except ValueError:
        raise  # the architecture has no language model
    except Exception as error:  # code that comes with a model
        raise not_loaded(config, None, error) from error
    return set(info["unexpected_keys"])


def without_memory(
    source: str, config: ModelConfig, fresh_head: bool | None = None, announce: Callable[[str], object] = say
) -> PreTrainedModel:
    """The model on the meta device, where it takes no memory. A ModelError unless its files hold all of its weights by
    name and shape.

    fresh_head  whether a reward model's head is fresh; None: it is a language model
    announce    as of `_from_pretrained`
    """
    nowhere = replace(place(config), device=torch.device("meta"))
    if fresh_head is None:
        return _from_pretrained(AutoModelForCausalLM, source, config, nowhere, announce=announce, device_map="meta")
    kind = AutoModelForSequenceClassification
    return _from_pretrained(kind, source, config, nowhere, fresh_head=fresh_head, device_map="meta", num_labels=1)


def _agree_on_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the model the tokenizer's pad and the tokens that end a turn, for training and for what is saved: other
    engines stop where the generation config says."""
    all_ends = turn_ends(tokenizer)
    ends = all_ends if len(all_ends) > 1 else all_ends[0]
    for config in {id(config): config for config in (model.config, model.config.get_text_config())}.values():
        config.pad_token_id, config.eos_token_id = tokenizer.pad_token_id, ends
    if model.can_generate():
        generation = model.generation_config
        generation.pad_token_id, generation.eos_token_id = tokenizer.pad_token_id, ends


def save(loaded: Loaded, directory: Path) -> None:
    """Write weights (safetensors), heads of an ensemble, tokenizer and template; of several processes one writes."""
    if processes.rank():
        return
    loaded.model.config.use_cache = True  # training turns it off, and generation without it is slow
    loaded.model.save_pretrained(directory)
    heads.save_ensemble(loaded.model, directory)
    loaded.tokenizer.save_pretrained(directory)
    obey_umask(directory)

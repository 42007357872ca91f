"""What a model is, before its weights are read: where its files are, its settings, and how much it can read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from trueup.errors import ModelError
from trueup.models.config import ModelConfig
from trueup.models.sources import hub
from trueup.models.sources.embedded import EMBEDDED, embedded_model
from trueup.models.templates.rendered import first_line


def source_of(config: ModelConfig, weights: bool = True) -> str:
    """The directory or file of the base model. What is not on this machine yet is fetched.

    weights  False: a hub's model is wanted without its weights
    """
    if config.name == EMBEDDED:
        return str(embedded_model(config.key("name")))
    if (hub_id := config.hub_id) is not None:
        return str(hub.fetch(hub_id, weights))
    if config.name.endswith(".gguf") and not Path(config.name).is_file():
        raise ModelError(f"{config.named}: no such file")
    return config.name


def read_settings(source: str, config: ModelConfig, subject: str | None = None) -> PretrainedConfig:
    """A model's configuration, as transformers reads it.

    subject  as of `not_loaded`
    """
    file = {"gguf_file": Path(source).name} if source.endswith(".gguf") else {}
    trusted = config.trust_remote_code
    try:
        return AutoConfig.from_pretrained(Path(source).parent if file else source, trust_remote_code=trusted, **file)
    except Exception as error:
        raise not_loaded(config, subject, error) from error


def not_loaded(config: ModelConfig, subject: str | None, error: Exception) -> ModelError:
    """The ModelError for whatever a library raises: errors of safetensors and tokenizers have no common class.

    subject  what was loaded, if it is not the model that the config names: a folder that a stage saved, an adapter
    """
    if "trust_remote_code" in str(error):
        return ModelError(
            f"{subject or config.named}: brings Python of its own, which runs with all your rights: read it, and set "
            f"{config.key('trust_remote_code')}: true if you trust it"
        )
    what = f"could not be loaded ({type(error).__name__}: {first_line(error)})"
    if subject:
        return ModelError(f"{subject}: {what}: fetch it or make it again")
    return ModelError(
        f"{config.named}: {what}. It may be `embedded`, a local directory with safetensors weights, a .gguf file, or a "
        "hub id where the hub can be reached"
    )


def context_length(settings: PretrainedConfig, tokenizer: Any = None) -> int | None:
    """Most tokens that the model can read, whatever its configuration calls them; None if it names no limit."""
    text = settings.get_text_config()
    for name in _CONTEXT_NAMES:
        length = getattr(text, name, None)
        if isinstance(length, int) and length > 0:
            return max(length, _scaled(text, length))
    length = getattr(tokenizer, "model_max_length", None)
    return length if isinstance(length, int) and length < 10**9 else None


_CONTEXT_NAMES = (
    *("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "max_seq_length"),
    *("seq_length", "seq_len", "context_length", "context_window"),
)


def _scaled(text: Any, length: int) -> int:
    """The limit with scaled rotary positions. Some configurations give the scale beside the limit, not in it."""
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    ropes = [rope, *(part for part in rope.values() if isinstance(part, dict))] if isinstance(rope, dict) else []
    limits = [
        int(part["factor"] * part.get("original_max_position_embeddings", length))
        for part in ropes
        if isinstance(part.get("factor"), int | float)
    ]
    return max(limits, default=0)

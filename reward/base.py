"""A reward model's base that is another one than the policy's (`reward.base`).

It is a language model, which gets a fresh head, or a reward model of one's own, which keeps its head.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trueup.console import say
from trueup.errors import ModelError
from trueup.models import loading
from trueup.models.config import ModelConfig
from trueup.models.loading import Loaded

_KEY = re.compile(rf"\bmodel\.(?=(?:{'|'.join(ModelConfig.model_fields)})\b)")


def in_section(message: str) -> str:
    """A message about the section `model` as one about `reward.base`, which has the same keys."""
    return _KEY.sub("reward.base.", message)


@contextmanager
def errors_of_base() -> Iterator[None]:
    """ModelErrors name the keys of `reward.base`."""
    try:
        yield
    except ModelError as error:
        raise ModelError(in_section(str(error))) from error


def load_base(base: ModelConfig, master_weights: bool) -> tuple[Loaded, bool]:
    """The reward model before its training, and whether its head is fresh."""
    with errors_of_base():
        fresh = needs_head(base)
        model = loading.load_base_for_scores(base, fresh, master_weights)
        require_score_head(base, model.model)
    head = "gets a fresh head" if fresh else "is a reward model and keeps its head"
    say(f"{'model':<12} from {base.name} (reward.base), which {head}, {model.placement.reason}")
    return model, fresh


def needs_head(base: ModelConfig) -> bool:
    """Whether the base is a language model; False of a reward model; a ModelError if it can become none."""
    source = loading.source_of(base, weights=False)
    if source.endswith(".gguf"):
        raise ModelError(
            f"model.name: {base.name}: a .gguf file cannot become a reward model: name a directory or a hub id with "
            "safetensors weights"
        )
    settings = loading.read_settings(source, base)
    if not any(name.endswith("ForSequenceClassification") for name in settings.architectures or []):
        return True
    if settings.num_labels != 1:
        raise ModelError(f"model.name: {base.name}: has {settings.num_labels} outputs; a reward model has one")
    return False


def require_score_head(base: ModelConfig, model: Any) -> None:
    """A ModelError unless the head reads the last token, as a decoder's does. An encoder has a head of another form."""
    if not hasattr(model, "score"):
        raise ModelError(
            f"model.name: {base.name}: {model.config.model_type} has no head that reads the last token of an answer: "
            "name a decoder, as language models are"
        )

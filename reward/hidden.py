"""Hidden states of answers: what a model that is cut after some of its layers would give its head."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trueup.models import tensors
from trueup.models.loading import Loaded
from trueup.training.pairs import EncodedPair

Pooling = Literal["last token", "mean over the answer"]
POOLINGS: tuple[Pooling, ...] = ("last token", "mean over the answer")
DEPTHS = 6
"""Depths that are read, evenly spaced. Between neighbours hidden states differ little, and each takes memory."""


class Place(NamedTuple):
    """Where an answer's features are read."""

    layers: int
    """Number of layers that the answer passes, counted from the first. The model's last norm follows."""
    pooling: Pooling


Features = dict[Place, np.ndarray]
"""The features of N pairs at each place: (N, 2, H) float32, the chosen answer's before the rejected one's."""


def depths(model: Any) -> list[int]:
    """Numbers of layers after which `model` can be cut, rising to all; only all where layers are not found.

    model  a sequence-classification model
    """
    count = len(_layers(model.base_model)) or model.config.get_text_config().num_hidden_layers
    if not _can_be_cut(model.base_model):
        return [count]
    return sorted({max(1, round(count * part / DEPTHS)) for part in range(1, DEPTHS + 1)})


@torch.inference_mode()
def read_features(model: Loaded, rows: Sequence[EncodedPair], batch_size: int = 16) -> Features:
    """The features of the answers of N pairs, without dropout.

    An answer is read behind its prompt, in the tokens that the reward model is trained on. Equal answers are read once.
    An empty answer is read at the prompt's last token.
    """
    answers = [(tuple(row.prompt_ids), tuple(ids)) for row in rows for ids in (row.chosen_ids, row.rejected_ids)]
    distinct = sorted(set(answers), key=lambda answer: (-len(answer[0]) - len(answer[1]), answer))
    decoder, device = model.model.base_model, model.placement.device
    counts = depths(model.model)
    was_training = model.model.training
    model.model.eval()
    batches: dict[Place, list[np.ndarray]] = {}
    for start in range(0, len(distinct), batch_size):
        batch = distinct[start : start + batch_size]
        texts = [prompt + answer for prompt, answer in batch]
        tokens, mask = (part.to(device) for part in tensors.pad_right(texts, model.tokenizer.pad_token_id))
        begins = torch.tensor([len(prompt) for prompt, _ in batch], device=device)
        for count, hidden in hidden_after(decoder, counts, tokens, mask):
            for pooling in POOLINGS:
                pooled = pool(hidden, mask, begins, pooling)
                batches.setdefault(Place(count, pooling), []).append(pooled.cpu().numpy())
    model.model.train(was_training)
    index = {answer: i for i, answer in enumerate(distinct)}
    where = np.array([index[answer] for answer in answers]).reshape(-1, 2)
    return {place: np.concatenate(parts)[where] for place, parts in batches.items()}


def pool(hidden: Tensor, mask: Tensor, begins: Tensor, pooling: Pooling) -> Tensor:
    """One vector of each answer, (B, H) float32.

    hidden  (B, T, H)
    mask    (B, T), True on real tokens, which stand on the left
    begins  (B,) where the answer begins; with no token behind it, its last token is the prompt's
    """
    last = mask.sum(dim=1) - 1  # (B,)
    if pooling == "last token":
        return hidden[torch.arange(len(hidden), device=hidden.device), last].float()
    positions = torch.arange(mask.size(1), device=mask.device)
    answer = mask & (positions >= torch.minimum(begins, last)[:, None])  # (B, T)
    return (hidden.float() * answer[..., None]).sum(dim=1) / answer.sum(dim=1, keepdim=True)


def hidden_after(decoder: Any, counts: Sequence[int], tokens: Tensor, mask: Tensor) -> Iterator[tuple[int, Tensor]]:
    """What `decoder` would give, (B, T, H), if it had only its first layers: for each of these rising counts of layers.

    All layers run once. Then what a layer gave is handed past all others, so that whatever the decoder does behind its
    layers, such as its last norm, is its own code.
    """
    layers, outputs = _layers(decoder), dict[int, Any]()
    inputs = {"input_ids": tokens, "attention_mask": mask, "use_cache": False}

    def keep(count: int) -> Any:
        return lambda layer, args, output: outputs.__setitem__(count, output)

    hooks = [layers[count - 1].register_forward_hook(keep(count)) for count in counts if count < len(layers)]
    try:
        whole = decoder(**inputs).last_hidden_state
    finally:
        for hook in hooks:
            hook.remove()
    for count in counts:
        if count not in outputs:
            yield count, whole
            continue
        with _given(layers, outputs.pop(count)):
            hidden = decoder(**inputs).last_hidden_state
        yield count, hidden


def _layers(decoder: Any) -> Any:
    return getattr(decoder, "layers", [])


@contextmanager
def _given(layers: Any, output: Any) -> Iterator[None]:
    """Every layer returns `output`, whatever it is given."""
    for layer in layers:
        layer.forward = lambda *args, **kwargs: output
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


@torch.inference_mode()
def _can_be_cut(decoder: Any) -> bool:
    """Whether the decoder is its layers, one after the other, and what stands before and behind them: what the last one
    gives, handed past all, gives what the decoder gives."""
    layers, outputs = _layers(decoder), list[Any]()
    if not len(layers):
        return False
    tokens = torch.arange(4, device=next(decoder.parameters()).device)[None]
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "use_cache": False}
    hook = layers[-1].register_forward_hook(lambda layer, args, output: outputs.append(output))
    try:
        whole = decoder(**inputs).last_hidden_state
    finally:
        hook.remove()
    if len(outputs) != 1:
        return False
    with _given(layers, outputs[0]):
        return torch.allclose(decoder(**inputs).last_hidden_state, whole)

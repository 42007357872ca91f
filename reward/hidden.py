"""Hidden states of answers: what a model that is cut after some of its layers would give its head."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trueup.console import progress
from trueup.models import tensors
from trueup.models.cache import reads_in_parts
from trueup.models.heads import Pooling, pool
from trueup.models.loading import Loaded
from trueup.models.scoring import Inputs, answer_inputs, answer_mask, read_prompts
from trueup.training.pairs import EncodedPair

POOLINGS: tuple[Pooling, ...] = ("last token", "mean over the answer")
DEPTHS = 3
"""Depths that are read, evenly spaced. Between neighbours hidden states differ little, and each takes memory."""


class Place(NamedTuple):
    """Where an answer's features are read."""

    layers: int
    """Number of layers that the answer passes, counted from the first. The model's last norm follows."""
    pooling: Pooling


Features = dict[Place, np.ndarray]
"""The features of N pairs at each place: (N, 2, H) float32, the chosen answer's before the rejected one's."""


def depths(model: Any) -> list[int]:
    """Numbers of layers after which hidden states can be read, rising to all; all alone where its layers are not found.

    model  a sequence-classification model
    """
    count = model.config.get_text_config().num_hidden_layers
    if not _passes_layers_in_turn(model.base_model):
        return [count]
    return sorted({max(1, round(count * part / DEPTHS)) for part in range(1, DEPTHS + 1)})


@torch.inference_mode()
def read_features(model: Loaded, rows: Sequence[EncodedPair], counts: Sequence[int], batch_size: int = 16) -> Features:
    """The features of the answers of N pairs behind each of these rising counts of layers, without dropout.

    An answer is read behind its prompt, in the tokens that the reward model is trained on. Equal answers are read once.
    An empty answer is read at the prompt's last token.
    """
    answers = [(tuple(row.prompt_ids), tuple(ids)) for row in rows for ids in (row.chosen_ids, row.rejected_ids)]
    distinct = {answer: i for i, answer in enumerate(dict.fromkeys(answers))}
    was_training = model.model.training
    model.model.eval()
    features: dict[Place, list[Any]] = {}
    done = 0
    for batch, inputs, mask in _batches(model, list(distinct), batch_size):
        for count, hidden in hidden_after(model.model.base_model, counts, inputs, mask):
            for pooling in POOLINGS:
                at = features.setdefault(Place(count, pooling), [None] * len(distinct))
                pooled = pool(hidden, mask, pooling).cpu().numpy()
                for answer, vector in zip(batch, pooled, strict=True):
                    at[distinct[answer]] = vector
        progress(done := done + len(batch), len(distinct))
    model.model.train(was_training)
    where = np.array([distinct[answer] for answer in answers]).reshape(-1, 2)
    return {place: np.stack(vectors)[where] for place, vectors in features.items()}


Answer = tuple[tuple[int, ...], tuple[int, ...]]
"""The tokens of a prompt and of an answer to it."""


def _batches(model: Loaded, answers: list[Answer], batch_size: int) -> Iterator[tuple[list[Answer], Inputs, Tensor]]:
    """Batches of answers, with the decoder's arguments and the mask (B, T) of the tokens that are the answers.

    As in `trueup.models.scoring.score_readings`, a prompt is read once for all of its answers if the architecture
    allows. An empty answer is the prompt's last token.
    """
    by_prompt: dict[tuple[int, ...], list[Answer]] = {}
    for answer in answers:
        by_prompt.setdefault(answer[0], []).append(answer)
    order = sorted(by_prompt, key=lambda prompt: (-len(prompt), prompt))
    in_parts = reads_in_parts(model.model.config) and all(ids for _, ids in answers)
    for start in range(0, len(order), batch_size):
        chunk = order[start : start + batch_size]
        past = read_prompts(model, chunk) if in_parts else None
        row_of = {prompt: row for row, prompt in enumerate(chunk)}
        members = sorted((answer for prompt in chunk for answer in by_prompt[prompt]), key=lambda a: (-len(a[1]), a))
        for first in range(0, len(members), batch_size):
            batch = members[first : first + batch_size]
            if past:
                inputs, mask = answer_inputs(model, past, [row_of[a[0]] for a in batch], [a[1] for a in batch])
            else:
                inputs, mask = _whole_inputs(model, batch)
            yield batch, inputs, mask


def _whole_inputs(model: Loaded, batch: list[Answer]) -> tuple[Inputs, Tensor]:
    """The decoder's arguments to read answers together with their prompts, and the mask (B, T) of the answers."""
    texts = [prompt + ids for prompt, ids in batch]
    tokens, mask = (part.to(model.placement.device) for part in tensors.pad_right(texts, model.tokenizer.pad_token_id))
    answered = answer_mask(mask, *zip(*batch, strict=True))
    return {"input_ids": tokens, "attention_mask": mask, "use_cache": False}, answered


def hidden_after(decoder: Any, counts: Sequence[int], inputs: Inputs, mask: Tensor) -> Iterator[tuple[int, Tensor]]:
    """What `decoder` would give, (B, T, H), if it had only its first layers: for each of these rising counts of layers.

    inputs  the decoder's arguments
    mask    (B, T), True on tokens that count

    The layers run once, and those behind the last count not at all. Then what a layer gave is handed past all others,
    so that whatever the decoder does behind its layers, such as its last norm, is its own code.
    """
    whole = decoder.config.get_text_config().num_hidden_layers
    if list(counts) == [whole]:
        yield whole, decoder(**inputs).last_hidden_state
        return
    layers, outputs = decoder.layers, dict[int, Any]()

    def keep(count: int) -> Any:
        def hook(layer: Any, args: Any, output: Any) -> None:
            outputs[count] = output
            if count == counts[-1]:
                raise _AllRead

        return hook

    hooks = [layers[count - 1].register_forward_hook(keep(count)) for count in counts]
    try:
        with suppress(_AllRead):
            decoder(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    for count in counts:
        with _given(layers, outputs.pop(count)):
            hidden = decoder(input_ids=inputs["input_ids"], attention_mask=mask, use_cache=False).last_hidden_state
        yield count, hidden


class _AllRead(Exception):
    """Ends a forward pass behind the last layer that counts."""


@contextmanager
def _given(layers: Any, output: Any) -> Iterator[None]:
    """Every layer returns `output`, whatever it is given."""
    own = [vars(layer).get("forward") for layer in layers]  # of a layer whose forward somebody has replaced
    for layer in layers:
        layer.forward = lambda *args, **kwargs: output
    try:
        yield
    finally:
        for layer, forward in zip(layers, own, strict=True):
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward


@torch.inference_mode()
def _passes_layers_in_turn(decoder: Any) -> bool:
    """Whether what the last layer gives, handed past all, gives what the decoder gives. Not so where a layer is called
    twice, or gives another one more than its output."""
    layers = getattr(decoder, "layers", [])
    if len(layers) != decoder.config.get_text_config().num_hidden_layers:
        return False
    tokens = torch.arange(4, device=next(decoder.parameters()).device)[None]
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "use_cache": False}
    outputs: list[Any] = []
    hook = layers[-1].register_forward_hook(lambda layer, args, output: outputs.append(output))
    try:
        whole = decoder(**inputs).last_hidden_state
    finally:
        hook.remove()
    if len(outputs) != 1:
        return False
    with _given(layers, outputs[0]):
        return torch.allclose(decoder(**inputs).last_hidden_state, whole)

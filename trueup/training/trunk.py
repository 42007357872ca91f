"""The layers below the first adapter, which no training changes: what they make of a text is computed once.

With `lora.last_layers` policy, reference and critic of PPO differ only above, so the layers below read an answer once a
rollout, not once a role and pass; and a training of several epochs reads its rows in the first. Every later forward
pass begins where the layers below end.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn


class Trunk:
    """The first `depth` layers of a decoder, whose output can be recorded, and given in place of running them.

    Skipped layers are called and hand on what they get; the last of them returns what is given. So the decoder's own
    forward stays what it is, whatever else it does before, between and after.
    """

    def __init__(self, decoder: Any):
        """decoder  with adapters in its layers already; `depth` is 0 where the first layer or the embedding has one"""
        layers = getattr(decoder, "layers", [])
        adapted = (n for n, layer in enumerate(layers) if _has_adapter(layer))
        self.depth = 0 if _has_adapter(decoder.get_input_embeddings()) else next(adapted, 0)
        self._given: Tensor | None = None
        self._recorded: list[Tensor] | None = None
        self._state_before: tuple[Any, ...] = ()
        self.drew_random_numbers = False
        """Whether the last forward pass that was recorded drew any, from its beginning to the end of the trunk."""
        self._gives_tuples = False  # as the layers of some architectures do
        self.decoder = decoder
        for n, layer in enumerate(layers[: self.depth]):
            layer.forward = self._layer(layer.forward, last=n == self.depth - 1)

    def _layer(self, original: Any, last: bool) -> Any:
        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self._given is not None:
                handed_on = self._given if last else hidden_states
                return (handed_on,) if self._gives_tuples else handed_on
            out = original(hidden_states, *args, **kwargs)
            self._gives_tuples = isinstance(out, tuple)
            if last and self._recorded is not None:
                self._recorded.append((out[0] if self._gives_tuples else out).detach())
                self.drew_random_numbers = _random_state(self._recorded[-1].device) != self._state_before
            return out

        return forward

    @contextmanager
    def recording(self) -> Iterator[list[Tensor]]:
        """A list that gets the trunk's output (B, L, H) of each forward pass; it stays empty where `depth` is 0."""
        recorded: list[Tensor] = []
        self._recorded = recorded
        self._state_before = _random_state(next(self.decoder.parameters()).device)
        try:
            yield recorded
        finally:
            self._recorded = None

    @contextmanager
    def given(self, hidden: Tensor | None) -> Iterator[None]:
        """Forward passes over tokens whose output (B, L, H) was recorded; None: nothing was, and all layers run."""
        self._given = hidden
        try:
            yield
        finally:
            self._given = None


@contextmanager
def kept_over_epochs(trunk: Trunk, tell: Callable[[bool], None] = lambda random: None) -> Iterator[None]:
    """While the decoder trains, a batch whose rows were all read before begins where the trunk ends.

    A row is known by its tokens, and what the trunk makes of it, (L, H), stays on the decoder's device. That holds only
    while the same row gives the same output: from the first pass on that draws random numbers, as dropout and noise on
    the embeddings do whatever their name, nothing is kept.

    tell  called once, after the first pass, with whether it drew random numbers
    """
    decoder, original = trunk.decoder, trunk.decoder.forward
    kept: dict[tuple[int, ...], Tensor] = {}
    is_random: bool | None = None

    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal is_random
        ids, mask = kwargs.get("input_ids", args[0] if args else None), kwargs.get("attention_mask")
        if is_random or not decoder.training or ids is None or mask is None:
            return original(*args, **kwargs)
        real = mask.bool()  # (B, L)
        rows = [tuple(row[there].tolist()) for row, there in zip(ids, real, strict=True)]
        if all(row in kept for row in rows):
            hidden = torch.cat([kept[row] for row in rows])  # of the real tokens, one after the other
            given = hidden.new_zeros(*ids.shape, hidden.size(-1))
            given[real] = hidden
            with trunk.given(given):
                return original(*args, **kwargs)
        with trunk.recording() as recorded:
            out = original(*args, **kwargs)
        if is_random is None or trunk.drew_random_numbers:
            is_random = trunk.drew_random_numbers
            tell(is_random)
        if is_random:
            kept.clear()
        else:
            kept.update({row: of[there] for row, of, there in zip(rows, recorded[0], real, strict=True)})
        return out

    decoder.forward = forward
    try:
        yield
    finally:
        del decoder.forward


def _random_state(device: torch.device) -> tuple[Any, ...]:
    """Of every generator that a model draws from, to be compared: it changes with each number that is drawn."""
    of_numpy: Any = np.random.get_state()
    states: list[Any] = [random.getstate(), of_numpy[1].tobytes(), of_numpy[2:]]
    states.append(torch.get_rng_state().numpy().tobytes())
    if device.type != "cpu":
        states.append(torch.get_device_module(device).get_rng_state().cpu().numpy().tobytes())
    return tuple(states)


def _has_adapter(module: nn.Module) -> bool:
    return any(isinstance(part, BaseTunerLayer) for part in module.modules())

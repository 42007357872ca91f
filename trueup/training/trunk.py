"""The trunk: the layers below the first adapter. Training does not change them, so they read each text once.

With `lora.last_layers` the policy, the reference and the critic of PPO share the trunk. It reads an answer once in a
rollout, and not once for each role and pass. A training of several epochs lets it read every row in the first epoch.
All later forward passes begin where the trunk ends.
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
    """The first `depth` layers of a decoder. Their output can be recorded, and used later in place of running them.

    When it is given, the decoder still calls each of these layers: they hand on their input, and the last one returns
    the given output. So the decoder's own forward need not change, whatever it does around its layers.
    """

    def __init__(self, decoder: Any):
        """decoder  has its adapters already; `depth` is 0 if the first layer or the embedding has one"""
        layers = getattr(decoder, "layers", [])
        adapted = (n for n, layer in enumerate(layers) if _has_adapter(layer))
        self.depth = 0 if _has_adapter(decoder.get_input_embeddings()) else next(adapted, 0)
        self._given: Tensor | None = None
        self._recorded: list[Tensor] | None = None
        self._state_before: tuple[Any, ...] = ()
        self.drew_random_numbers = False
        """Whether the last recorded forward pass drew any before the trunk ended."""
        self._gives_tuples = False  # as the layers of some architectures do
        self.decoder = decoder
        for n, layer in enumerate(layers[: self.depth]):
            layer.forward = self._layer(layer.forward, last=n == self.depth - 1)

    def _layer(self, original: Any, last: bool) -> Any:
        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self._given is not None:
                output = self._given if last else hidden_states
                return (output,) if self._gives_tuples else output
            out = original(hidden_states, *args, **kwargs)
            self._gives_tuples = isinstance(out, tuple)
            if last and self._recorded is not None:
                self._recorded.append((out[0] if self._gives_tuples else out).detach())
                self.drew_random_numbers = _random_state(self._recorded[-1].device) != self._state_before
            return out

        return forward

    @contextmanager
    def recording(self) -> Iterator[list[Tensor]]:
        """The list that is yielded gets the trunk's output (B, L, H) of each forward pass. It stays empty where `depth`
        is 0."""
        recorded: list[Tensor] = []
        self._recorded = recorded
        self._state_before = _random_state(next(self.decoder.parameters()).device)
        try:
            yield recorded
        finally:
            self._recorded = None

    @contextmanager
    def given(self, hidden: Tensor | None) -> Iterator[None]:
        """Forward passes within begin with `hidden`, the recorded output (B, L, H). None: all layers run."""
        self._given = hidden
        try:
            yield
        finally:
            self._given = None


@contextmanager
def kept_over_epochs(trunk: Trunk, tell: Callable[[bool], None] = lambda random: None) -> Iterator[None]:
    """Keep the trunk's output of each row while the decoder trains, so that later epochs begin where the trunk ends.

    The key of a row is its tokens. Its output, (L, H), stays on the decoder's device. A batch skips the trunk if all of
    its rows are there. This is right only while the same row gives the same output. Dropout and noise on the embeddings
    break that: they draw random numbers, and from the first forward pass that draws any, nothing is kept.

    tell  is called once, after the first pass, with whether it drew random numbers
    """
    decoder, original = trunk.decoder, trunk.decoder.forward
    outputs: dict[tuple[int, ...], Tensor] = {}
    is_random: bool | None = None

    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal is_random
        ids, mask = kwargs.get("input_ids", args[0] if args else None), kwargs.get("attention_mask")
        if is_random or not decoder.training or ids is None or mask is None:
            return original(*args, **kwargs)
        real = mask.bool()  # (B, L)
        rows = [tuple(row[there].tolist()) for row, there in zip(ids, real, strict=True)]
        if all(row in outputs for row in rows):
            hidden = torch.cat([outputs[row] for row in rows])  # of the real tokens, one after the other
            trunk_output = hidden.new_zeros(*ids.shape, hidden.size(-1))
            trunk_output[real] = hidden
            with trunk.given(trunk_output):
                return original(*args, **kwargs)
        with trunk.recording() as recorded:
            out = original(*args, **kwargs)
        if is_random is None or trunk.drew_random_numbers:
            is_random = trunk.drew_random_numbers
            tell(is_random)
        if is_random:
            outputs.clear()
        else:
            outputs.update({row: of[there] for row, of, there in zip(rows, recorded[0], real, strict=True)})
        return out

    decoder.forward = forward
    try:
        yield
    finally:
        del decoder.forward


def _random_state(device: torch.device) -> tuple[Any, ...]:
    """The state of every generator that a model draws from. It changes with each number that is drawn."""
    of_numpy: Any = np.random.get_state()
    states: list[Any] = [random.getstate(), of_numpy[1].tobytes(), of_numpy[2:]]
    states.append(torch.get_rng_state().numpy().tobytes())
    if device.type != "cpu":
        states.append(torch.get_device_module(device).get_rng_state().cpu().numpy().tobytes())
    return tuple(states)


def _has_adapter(module: nn.Module) -> bool:
    return any(isinstance(part, BaseTunerLayer) for part in module.modules())

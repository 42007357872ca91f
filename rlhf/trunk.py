"""The layers below the first adapter, which are the same in every role: read once a rollout, not once a role and pass.

With `lora.last_layers` policy, reference and critic differ only above. What the layers below make of an answer is then
kept with the rollout, and every later forward pass begins where it ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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
        for n, layer in enumerate(layers[: self.depth]):
            layer.forward = self._layer(layer.forward, last=n == self.depth - 1)

    def _layer(self, original: Any, last: bool) -> Any:
        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self._given is not None:
                return self._given if last else hidden_states
            out = original(hidden_states, *args, **kwargs)
            if last and self._recorded is not None:
                self._recorded.append(out.detach())
            return out

        return forward

    @contextmanager
    def recording(self) -> Iterator[list[Tensor]]:
        """A list that gets the trunk's output (B, L, H) of each forward pass; it stays empty where `depth` is 0."""
        recorded: list[Tensor] = []
        self._recorded = recorded
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


def _has_adapter(module: nn.Module) -> bool:
    return any(isinstance(part, BaseTunerLayer) for part in module.modules())

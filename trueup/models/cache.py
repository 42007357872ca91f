"""The key-value cache of sampling: it grows in steps and drops rows that are finished."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin


class _RoomyLayer(DynamicLayer):
    """A cache layer with room to grow. DynamicLayer copies the cache for every token: a third of all time on a CPU."""

    keys: Tensor
    values: Tensor
    _ROOM = 64  # tokens

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values, both (B, heads, T, D), and return all of them so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._buffers: dict[str, Tensor] = {}
        self.keys = self._append("keys", self.keys, key_states)
        self.values = self._append("values", self.values, value_states)
        return self.keys, self.values

    def _append(self, name: str, stored: Tensor, new: Tensor) -> Tensor:
        buffer = self._buffers.get(name)
        length = stored.shape[-2] if stored.numel() else 0
        total = length + new.shape[-2]
        # Selecting or repeating rows made new tensors, so what is stored may no longer be a view of the buffer.
        if buffer is None or stored.data_ptr() != buffer.data_ptr() or total > buffer.shape[-2]:
            buffer = new.new_empty(*new.shape[:-2], total + self._ROOM, new.shape[-1])
            if length:
                buffer[..., :length, :] = stored
            self._buffers[name] = buffer
        buffer[..., length:total, :] = new
        return buffer[..., :total, :]


def as_argument(cache: DynamicCache, model: Any) -> dict[str, DynamicCache]:
    """The cache as a keyword argument, under the name that the model's forward gives it.

    transformers calls it `cache` since some release after 5.17, and understands `past_key_values` until 5.40.
    """
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    takes = inspect.signature(type(model).forward).parameters
    return {"cache" if "cache" in takes else "past_key_values": cache}


def roomy_cache(config: Any) -> DynamicCache:
    """A cache for the model, with roomy layers wherever it has plain ones (not for sliding windows)."""
    cache = DynamicCache(config=config)
    cache.layers = [_RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def reads_in_parts(config: Any) -> bool:
    """Whether the model can continue a cached text by several tokens at once. A recurrent state (Mamba, LFM2) continues
    by one token only; given more, it starts anew."""
    return not any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in DynamicCache(config=config).layers)

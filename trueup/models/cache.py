"""The key-value cache of sampling: it grows in steps, and gives up rows that are done."""

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

    def _append(self, name: str, held: Tensor, new: Tensor) -> Tensor:
        buffer = self._buffers.get(name)
        length = held.shape[-2] if held.numel() else 0
        total = length + new.shape[-2]
        # Selecting or repeating rows replaced what is held, so the buffer is no longer what it is a view of.
        if buffer is None or held.data_ptr() != buffer.data_ptr() or total > buffer.shape[-2]:
            buffer = new.new_empty(*new.shape[:-2], total + self._ROOM, new.shape[-1])
            if length:
                buffer[..., :length, :] = held
            self._buffers[name] = buffer
        buffer[..., length:total, :] = new
        return buffer[..., :total, :]


def as_argument(cache: DynamicCache, model: Any) -> dict[str, DynamicCache]:
    """The cache under the name that the model's forward has for it.

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
    """Whether a text can be read on from a cache several tokens at once. A state that is carried from token to token
    (Mamba, LFM2) goes on by one token, and begins anew with more."""
    return not any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in DynamicCache(config=config).layers)

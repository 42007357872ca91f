"""What an adapter changes beyond linear modules by low rank, and what cannot be merged into the weights. No torch.

A plain LoRA adapter can be added to a shared base model, row by row (trueup/models/lockstep.py), and merged into it.
With some of PEFT's settings it can only be merged; with others not even that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

_PLAIN_INITS = (None, True, False, "gaussian", "orthogonal", "eva")
"""Values of `init_lora_weights` that leave the base model's weights alone."""
_NOT_MERGED = (
    *("lora_bias", "alora_invocation_tokens", "layer_replication", "use_qalora", "use_bdlora"),
    *("arrow_config", "kasa_config", "monteclora_config"),
)
_MERGED_ALONE = ("modules_to_save", "use_dora", "target_parameters", "trainable_token_indices")


def unmergeable(settings: Mapping[str, Any]) -> str | None:
    """The setting, as `key: value`, by which an adapter cannot be merged into the files of its base model; None if it
    can be."""
    if (init := settings.get("init_lora_weights")) not in _PLAIN_INITS:
        return f"init_lora_weights: {init}"  # it changed the base model's weights before training
    return next((f"{key}: {settings[key]}" for key in _NOT_MERGED if settings.get(key)), None)


def more_than_linear(adapter: Path) -> str | None:
    """The setting by which an adapter changes more than linear modules by low rank; None if it is a plain one."""
    settings = json.loads((adapter / SETTINGS).read_text(encoding="utf-8"))
    if (reason := unmergeable(settings)) is not None:
        return reason
    if (bias := settings.get("bias") or "none") != "none":
        return f"bias: {bias}"
    if keys := [key for key in _MERGED_ALONE if settings.get(key)]:
        return f"{keys[0]}: {settings[keys[0]]}"
    return "target_modules: embeddings" if any("lora_embedding_" in name for name in _names(adapter)) else None


def _names(adapter: Path) -> list[str]:
    try:
        with safe_open(adapter / WEIGHTS, framework="numpy") as file:
            return list(file.keys())
    except (OSError, SafetensorError):  # whoever loads the adapter says what is wrong with its file
        return []

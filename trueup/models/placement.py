"""Where a model runs: device, precision of its weights and attention, each choice with its reason."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trueup.errors import ModelError
from trueup.models.config import ModelConfig

# ---- Device and dtype -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Placement:
    """Where a model runs and in what precision, with the reason."""

    device: torch.device
    dtype: torch.dtype
    attention: str | None
    """None: transformers chooses, since not every architecture has every implementation."""
    reason: str
    autocast: bool = False
    """Training computes matrix products in bf16, whatever precision the weights are kept in."""

    @property
    def facts(self) -> dict[str, str]:
        """Device, dtype and attention for the manifest."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        dtype = str(self.dtype).removeprefix("torch.")
        return {"device": name, "dtype": dtype, "attention": self.attention or "auto"}


def place(config: ModelConfig, master_weights: bool = False) -> Placement:
    """Choose device, dtype and attention. A value in the config overrides the automatic choice."""
    device = torch.device(config.device if config.device != "auto" else _best_device())
    if not _is_there(device):
        raise ModelError(
            f"{config.key('device')}: {config.device}: PyTorch {torch.__version__} sees no such device on this machine"
        )
    dtype, why = _best_dtype(device)
    if master_weights and dtype != torch.float32:
        dtype, why = torch.float32, "all weights are trained, and bf16 would round their small updates away"
    if config.dtype != "auto":
        dtype, why = getattr(torch, config.dtype), "as the config says"
    attention = None if config.attn_implementation == "auto" else config.attn_implementation
    attends = f"{attention} attention" if attention else "attention as transformers chooses it for the architecture"
    reason = f"{device}, {str(dtype).removeprefix('torch.')} ({why}), {attends}"
    autocast = config.dtype in ("auto", "bfloat16") and _has_bf16_units(device)
    return Placement(device, dtype, attention, reason, autocast)


def _best_device() -> str:
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def _is_there(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
    return device.type != "mps" or torch.backends.mps.is_available()


def _has_bf16_units(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def _best_dtype(device: torch.device) -> tuple[torch.dtype, str]:
    if device.type == "cuda":
        if _has_bf16_units(device):
            return torch.bfloat16, "this GPU has bf16 units"
        return torch.float32, "this GPU has no bf16 units, and float16 overflows without loss scaling"
    if device.type == "mps":
        return torch.float32, "bf16 training is not dependable on MPS"
    return torch.float32, "on a CPU bf16 saves memory but no time"

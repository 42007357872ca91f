"""The files of a model's folder, and the folder of an adapter."""

from __future__ import annotations

import json
from pathlib import Path

from trueup.errors import ModelError
from trueup.models.config import ModelConfig, named
from trueup.models.sources import hub
from trueup.models.sources.hub import INDEX


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that are read for the model in a folder, with their index; of two copies the one file."""
    whole, index = folder / "model.safetensors", folder / INDEX
    if whole.is_file() or not index.is_file():
        return [whole] if whole.is_file() else []
    names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    return [index, *(folder / name for name in sorted(set(names)))]


def adapter_folder(config: ModelConfig, weights: bool = True) -> Path | None:
    """The folder of the adapter that the config names, if it names one; a hub id is fetched.

    weights  False: a hub's adapter is wanted without its weights
    """
    if config.adapter is None:
        return None
    if (hub_id := config.adapter_hub_id) is not None:
        return hub.fetch(hub_id, weights)
    if not Path(config.adapter).is_dir():
        raise ModelError(f"{named(config.key('adapter'), config.adapter)}: no such directory")
    return Path(config.adapter)

"""The files of a model's folder, and the folder of an adapter."""

from __future__ import annotations

import json
import os
from pathlib import Path

from huggingface_hub import snapshot_download

from trueup.errors import ModelError
from trueup.models.config import ModelConfig
from trueup.models.sources.hub import INDEX
from trueup.models.sources.refusals import HubId, refusal

_OF_AN_ADAPTER = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
"""What is fetched of an adapter: no pickled weights."""


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that are read for the model in a folder, with their index; of two copies the one file."""
    whole, index = folder / "model.safetensors", folder / INDEX
    if whole.is_file() or not index.is_file():
        return [whole] if whole.is_file() else []
    names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    return [index, *(folder / name for name in sorted(set(names)))]


def adapter_folder(config: ModelConfig) -> Path | None:
    """The folder of the adapter that the config names, if it names one; a hub id is fetched."""
    name = config.adapter
    if name is None or os.path.isdir(name):
        return Path(name) if name else None
    if name.startswith("/"):
        raise ModelError(f"model.adapter: {name}: no such directory")
    try:
        return Path(snapshot_download(name, allow_patterns=_OF_AN_ADAPTER))
    except Exception as error:
        raise ModelError(refusal(HubId(name, key="model.adapter"), error, "").text) from error

"""Checks of places on this machine: a model's files are there and whole, the run directory has room, and there
is what several processes share."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from trueup.campaign import Campaign
from trueup.errors import ConfigError
from trueup.models.config import ModelConfig, as_written, is_path
from trueup.provenance.commits import HubId
from trueup.training.config import TrainConfig

EMBEDDED_BYTES = 540_000_000

# ---- The model --------------------------------------------------------------------------------------------------


def find_model(model: ModelConfig, beside: Path, problems: list[str], notes: list[str]) -> Path | None:
    """The directory or .gguf file of a model that the campaign names; None if it is not on this machine, or not whole.

    beside  the folder of the campaign file
    """
    key, written = model.key("name"), as_written(model.name)
    if model.name == "embedded":
        from trueup.models.sources.embedded import EMBEDDED_NAME
        from trueup.provenance.contents import cache_dir

        directory = cache_dir() / EMBEDDED_NAME
        if directory.is_dir():
            return directory
        notes.append(f"{key}: embedded: not fetched yet; the first run fetches 98 MB from the package index")
        return None
    if (hub_id := model.hub_id) is not None:
        return _find_hub_id(model, replace(hub_id, beside=beside), problems, notes)
    if not is_path(written) and not written.endswith(".gguf"):
        notes.append(f"{key}: {written}: means {model.name}, beside the campaign file, and not the hub id")
    path = Path(model.name)
    if path.is_file() or model.name.endswith(".gguf"):
        if not path.is_file():
            problems.append(f"{model.named}: no such file{_elsewhere(written)}")
            return None
        if path.suffix != ".gguf":
            problems.append(f"{model.named}: is a file; a directory, a .gguf file or a hub id is wanted")
            return None
        return path
    return _find_directory(model, path, problems)


def _find_directory(model: ModelConfig, path: Path, problems: list[str]) -> Path | None:
    """A model's directory, if it has all files that loading needs, and none is cut off."""
    from safetensors import SafetensorError, safe_open

    if not path.is_dir():
        problems.append(f"{model.named}: no such directory{_elsewhere(as_written(model.name))}")
        return None
    if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
        instead = "name it as model.adapter, and the model below it as model.name"
        if model.key("name") != "model.name":
            instead = "merge it into the model below it, and name the result"
        problems.append(f"{model.named}: is an adapter; {instead}")
        return None
    weights = sorted(path.glob("*.safetensors"))
    lacking = [
        what for what, there in (("config.json", (path / "config.json").is_file()), ("weights", weights)) if not there
    ]
    if lacking:
        problems.append(f"{model.named}: has no {' and no '.join(lacking)} (safetensors wanted)")
        return None
    try:
        index = json.loads((path / "model.safetensors.index.json").read_text(encoding="utf-8"))["weight_map"]
        missing = sorted({name for name in index.values() if not (path / name).is_file()})
    except FileNotFoundError:
        missing = []
    except (ValueError, KeyError, AttributeError):
        problems.append(f"{model.named}: model.safetensors.index.json cannot be read")
        return None
    broken = [f"{', '.join(missing)} of model.safetensors.index.json is not there"] if missing else []
    for file in weights:
        try:
            with safe_open(file, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            broken.append(f"{file.name} is not a whole safetensors file ({error})")
    problems.extend(f"{model.named}: {text}" for text in broken)
    return None if broken else path


def _elsewhere(entry: str) -> str:
    """A hint if the path exists from the working directory."""
    here = Path(entry).expanduser()
    return f" (paths start from the campaign file; there is one at {here.absolute()})" if here.exists() else ""


def _find_hub_id(model: ModelConfig, hub_id: HubId, problems: list[str], notes: list[str]) -> Path | None:
    """The folder of a hub id's files. All but the weights are fetched if they are not on this machine."""
    from trueup.models.sources import hub

    directory = hub.fetch(hub_id, weights=False)
    hub_id = hub_id.at(directory.name)
    if not hub.lacking(hub_id):
        return _find_directory(model, directory, problems)
    size = hub.weight_bytes(hub_id) / 1e6
    about = f" ({size:,.1f} MB)" if size else ""
    notes.append(f"{hub_id.key}: {hub_id.name}: the first run fetches its weights{about}; here they were not checked")
    return directory


# ---- The run directory ------------------------------------------------------------------------------------------


def _existing(path: Path) -> Path:
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if os.path.exists(folder))


def check_place(key: str, path: Path, problems: list[str]) -> None:
    """Add a problem unless files can be written to `path`."""
    existing = _existing(path)
    longest = os.pathconf(existing, "PC_NAME_MAX") if existing.is_dir() else 0
    if not existing.is_dir():
        problems.append(f"{key}: {path}: {existing} is a file; a folder is wanted")
    elif too_long := [part for part in path.absolute().parts if len(os.fsencode(part)) > longest]:
        problems.append(f"{key}: {too_long[0][:40]}...: a name may have {longest} bytes here, this one has more")
    elif not os.access(existing, os.W_OK | os.X_OK) or not _takes_a_file(existing):
        problems.append(f"{key}: {path}: {existing} cannot be written to")


def _takes_a_file(folder: Path) -> bool:
    """Whether a file can be written. We try it, since permissions show no read-only or full file system."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"trueup")
            file.flush()
    except OSError:
        return False
    return True


def check_disk(
    campaign: Campaign,
    trains_whole: bool,
    directory: Path | None,
    base: tuple[ModelConfig, Path | None] | None,
    problems: list[str],
    notes: list[str],
) -> None:
    """Compare free space with the three models that a campaign keeps and the checkpoints of a training. An SFT policy
    that is the named model takes none: its weights are hard links.

    base  a reward model's own base, with its directory
    """
    model = campaign.config.model
    size = _weight_bytes(model, directory)
    of_reward = _weight_bytes(*base) if base else size
    if size is None or of_reward is None:
        return
    # A checkpoint of adapters is small; one of all weights has them and the optimiser's two moments.
    in_files = directory is None or directory.is_dir()
    is_linked = in_files and not model.adapter and not isinstance(campaign.stages["sft"], TrainConfig)
    largest = max(size, of_reward)
    rounds = campaign.config.rounds
    need = (
        (0 if is_linked else 1) * size + rounds * (size + of_reward) + (3 * largest if trains_whole else largest // 4)
    )
    existing = _existing(campaign.run_dir)
    free = shutil.disk_usage(existing).free
    text = f"run_dir: {campaign.run_dir}: about {need / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free"
    (problems if free < need else notes).append(text)


def _weight_bytes(model: ModelConfig, directory: Path | None) -> int | None:
    """The size of a model's weights as a stage saves them; None if it is not known."""
    if directory is None:
        return EMBEDDED_BYTES if model.name == "embedded" else None
    if directory.is_file():
        return 6 * directory.stat().st_size  # a GGUF file of 4 to 8 bits, written back in float32
    size = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
    if (hub_id := model.hub_id) is not None:
        from trueup.models.sources.hub import weight_bytes

        size = weight_bytes(hub_id.at(directory.name)) or size
    return size or EMBEDDED_BYTES


# ---- Processes --------------------------------------------------------------------------------------------------


def processes_of(campaign: Campaign, stages: Sequence[str]) -> tuple[int, bool]:
    """Number of the processes that `launch` starts, and whether they train on the CPU. A ConfigError where there is
    nothing to share, or where so many cannot share these stages."""
    import torch

    from trueup.models.placement import place

    device, launch = place(campaign.config.model).device.type, campaign.config.launch
    gpus = torch.cuda.device_count() if device == "cuda" else 0
    number = campaign.config.processes or gpus
    problems = campaign.not_shared(number, stages) if number > 1 else []
    if device not in ("cpu", "cuda"):
        problems = [f"launch: {launch} trains on GPUs of CUDA or ROCm, or on the CPU (found {device})"]
    elif number < 2:
        found = "one GPU" if gpus else "no GPU"
        problems = [f"launch: {launch} needs several processes, and there is {found}: leave it out, or say processes"]
    elif 0 < gpus < number:
        problems = [f"processes: {number} need as many GPUs (found {gpus})"]
    if problems:
        raise ConfigError(campaign.source, problems)
    return number, device == "cpu"


def check_launch(campaign: Campaign, problems: list[str], notes: list[str]) -> None:
    if campaign.config.launch:
        number, _ = processes_of(campaign, list(campaign.stages))
        notes.append(f"launch: {campaign.config.launch} on {number} processes")

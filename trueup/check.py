"""`trueup check`: finds all problems that show without training, in seconds.

It reads files whole, and builds each training stage on a model without memory (trueup.training.trial), so that a
mistake shows here and not as a crash hours later. A stage checks its own keys and rows; its config names the functions
(`StageConfig.check`, `check_rows`). Errors of libraries and of the user's own code become problems that name the key.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from trueup.campaign import Campaign
from trueup.checking.model import settle
from trueup.checking.places import check_disk, check_launch, check_place, find_model
from trueup.checking.rows import ReadFile, Rows
from trueup.config import SplitConfig, Stages
from trueup.data.duplicates.training import across_split
from trueup.errors import ModelError, TrueupError
from trueup.models.config import ModelConfig, ModelStageConfig
from trueup.provenance.commits import HubId
from trueup.stages import load_object
from trueup.training.config import TrainConfig


class StageCheck(Protocol):
    """A stage's check of its own keys, without training."""

    def __call__(self, config: Any, stages: Stages, problems: list[str], notes: list[str]) -> list[ReadFile] | None:
        """Adds to `problems` and `notes`, and returns the files whose rows the stage prompts with or trains on."""


class RowsCheck(Protocol):
    """A stage's check of the rows of all files, once they are read and encoded."""

    def __call__(self, config: Any, stages: Stages, rows: Rows, problems: list[str], notes: list[str]) -> None:
        """Adds to `problems` and `notes`."""


def check(campaign: Campaign) -> tuple[list[str], list[str]]:
    """(problems, notes), each a line or a few. A problem stops or spoils a run; a note is good to know."""
    problems: list[str] = []
    notes: list[str] = []

    def part(function: Callable[..., Any], *arguments: Any) -> Any:
        """One part of the check. If it raises, that is a problem, the result is None, and the other parts go on."""
        try:
            return function(*arguments, problems, notes)
        except TrueupError as error:
            problems.append(str(error))
        except OSError as error:
            problems.append(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        except ModuleNotFoundError as error:
            problems.append(f"{error.name} is not installed, which training needs: pip install -e '.[train]'")
        return None

    for hub_id in campaign.hub_ids(campaign.needed()):
        campaign = part(_settle, campaign, hub_id) or campaign
    model = campaign.config.model
    # A further round has the keys of the first.
    stages = {stage: config for stage in campaign.needed() if (config := campaign.stages[stage]).round == 1}
    rows = Rows([])
    for config in stages.values():
        if config.check is not None:
            check_stage: StageCheck = load_object(config.check)
            rows.files += part(check_stage, config, stages) or []
    part(_check_split, rows.files, campaign.config.split)

    part(check_launch, campaign)
    check_place("run_dir", campaign.run_dir, problems)
    before = len(problems)
    directory = part(find_model, model, campaign.source.parent)
    rows.context = part(_check_model, _on_the_model(stages), model, directory, None)
    keys = tuple(f"{model.key(field)}: " for field in ("name", "revision", "adapter"))
    if directory is not None and not any(problem.startswith(keys) for problem in problems[before:]):
        part(_encode, rows, model)
    base = None
    for name, config in stages.items():
        if isinstance(config, ModelStageConfig) and config.scorer:
            place = part(find_model, config.scorer, campaign.source.parent)
            part(_check_model, {name: config}, config.scorer, place, config)
            base = (config.scorer, place) if isinstance(config, TrainConfig) else base
    for config in stages.values():
        if config.check_rows is not None:
            check_rows: RowsCheck = load_object(config.check_rows)
            part(check_rows, config, stages, rows)
    trains_whole = any(isinstance(config, TrainConfig) and config.full_finetuning for config in stages.values())
    part(check_disk, campaign, trains_whole, directory, base)
    return _each_once(problems), notes


def _each_once(problems: list[str]) -> list[str]:
    """Without the repetitions of all that reads a hub id which cannot be had; they may lack the guess at its end."""
    first: dict[str, str] = {}
    for problem in problems:
        first.setdefault(problem.partition("; did you mean ")[0], problem)
    return list(first.values())


def _settle(campaign: Campaign, hub_id: HubId, problems: list[str], notes: list[str]) -> Campaign:
    """The campaign with a hub id at the commit that a run would take now."""
    settled, note = settle(campaign, hub_id, keep=False)
    notes += [note] if note else []
    return settled


def _check_split(files: list[ReadFile], split: SplitConfig, problems: list[str], notes: list[str]) -> None:
    """Add a note if held-out prompts are nearly equal to others that may be trained on."""
    places: dict[str, str] = {}
    not_placed = 0
    for file in files:
        if file.key in ("sft.data", "sample.prompts"):
            places = {**file.places, **places}  # a question's first place counts
            not_placed += file.not_placed
    if duplicates := across_split(places, split, not_placed):
        notes.append(f"split: {duplicates}")


def _encode(rows: Rows, model: ModelConfig, problems: list[str], notes: list[str]) -> None:
    """Add a problem unless every row of every file can be encoded."""
    from trueup.models.loading import load_base_tokenizer

    try:
        tokenizer = load_base_tokenizer(model)
    except ModelError:
        return  # `_check_model` reports that
    rows.encode(tokenizer, problems, notes)


def _check_model(
    stages: Stages,
    model: ModelConfig,
    directory: Path | None,
    names_it: ModelStageConfig | None,
    problems: list[str],
    notes: list[str],
) -> int | None:
    """Build a model that the campaign names, and every stage that trains it, without memory. Returns the model's
    context, if known.

    names_it  the stage that names the model, which is to score; None: it is the campaign's language model
    """
    from trueup.models import loading
    from trueup.models.sources.settings import context_length, read_settings
    from trueup.training import description, trial

    base = trial.Stage(model, *trial.stand_in(stages))
    is_readable = False
    choices: list[str] = []
    if directory is not None:
        try:
            if names_it:
                settings, fresh_head = loading.scorer_settings(model, names_it.headless)
            else:
                settings, fresh_head = read_settings(str(directory), model), None
            base = trial.Stage(model, settings, base.tokenizer, fresh_head)
            is_readable = True
            base.tokenizer = loading.load_base_tokenizer(model, choices.append)
        except TrueupError as error:
            problems.append(str(error))
    if model.load_in_4bit:
        problems += trial.try_quantisation(model)
    if model_problems := trial.try_model(base):
        problems += model_problems
        base = trial.Stage(trial.plain(model), *trial.stand_in(stages))
        is_readable = False
    elif is_readable and directory is not None and _has_weights(directory, model):
        problems += trial.try_weights(str(directory), base, notes.append)
    problems += trial.try_stages(stages, base)
    if not is_readable:
        return None
    notes[:0] = [description.describe(base, choice, stages).text for choice in choices]
    if model.adapter:
        problems += trial.try_adapter(base)
    if (note := trial.tried(base)) is not None:
        notes.append(note)
    context = context_length(base.settings, base.tokenizer)
    _check_context(stages, model, context, problems)
    return context


def _has_weights(directory: Path, model: ModelConfig) -> bool:
    """Whether the folder has weights, and all that a hub's model has."""
    from trueup.models.sources import hub

    has_weights = directory.is_dir() and any(directory.glob("*.safetensors"))
    return has_weights and not (model.hub_id and hub.lacking(model.hub_id.at(directory.name)))


def _on_the_model(stages: Stages) -> Stages:
    """The stages without those that train another model: they check it themselves."""
    return {name: config for name, config in stages.items() if not (isinstance(config, TrainConfig) and config.scorer)}


def _check_context(stages: Stages, model: ModelConfig, context: int | None, problems: list[str]) -> None:
    whose = "the model's context" if model.section == "model" else f"the context of {model.section}"
    for stage, config in stages.items():
        if isinstance(config, TrainConfig) and context and config.max_length > context:
            problems.append(f"{stage}.max_length: {config.max_length}, but {whose} has {context} tokens")
